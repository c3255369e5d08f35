"""Speed and memory of the tokenizer, beside plain faiss and beside the matrix products that it cannot do without.

    python scripts/perf/tokenizer.py train --repeats 5            # 100,000 x 256, 3 x 1,024 codes, beside faiss.Kmeans
    python scripts/perf/tokenizer.py encode --repeats 5           # beside the bare matrix products
    python scripts/perf/tokenizer.py memory --gb 20 --limit_gib 3 --work_dir /big/disk
    python scripts/perf/tokenizer.py encode --points 1000000 --dim 4096 --codes 8192 --device cuda   # one GPU

Items are drawn around cluster centres of random sizes. Both sides of a comparison take turns, each in a process of its
own, with the same threads; times are without reading the input (the scripts note them in their manifests), except for
`memory` and where it says end to end. A ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, add_numbers, itself, measured, range_of, spent

from onerec.cli import cli
from onerec.flags import POSITIVE, WIDTH

BLOCK = 1 << 14
GROUP = 64  # blocks of a row group, which is then about as large as pandas makes it


def items(n: int, dim: int, centres: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks float32 [<= BLOCK, dim] of ``n`` items around ``centres`` points, some of them drawn more often."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, dim), dtype=np.float32)
    share = rng.lognormal(0, 1, centres)
    for start in range(0, n, BLOCK):
        which = rng.choice(centres, min(BLOCK, n - start), p=share / share.sum())
        yield middle[which] + rng.standard_normal((len(which), dim), dtype=np.float32)


def write_items(file: Path, args: argparse.Namespace) -> None:
    """Write the items as Parquet."""
    schema = pa.schema([("pid", pa.int64()), ("embedding", pa.list_(pa.float32(), args.dim))])
    settings = {"compression": "none", "use_dictionary": False}
    first, held = 0, []
    with pq.ParquetWriter(file, schema, **settings) as writer:
        for block in items(args.points, args.dim, args.centres, args.seed):
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), args.dim)
            held.append(pa.table({"pid": np.arange(first, first + len(block)), "embedding": column}))
            first += len(block)
            if len(held) == GROUP or first == args.points:
                writer.write_table(pa.concat_tables(held), row_group_size=GROUP * BLOCK)
                held = []


def command(script: str, **flags: Any) -> list[str]:
    """The command line of a script of the tokenizer."""
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "tokenizer" / script), *given]


def train_command(args: argparse.Namespace, data: Path, model: Path, backend: str) -> list[str]:
    sizes = {"n_layers": args.layers, "codebook_size": args.codes, "dim": args.dim, "max_points": args.points}
    more = {"niter": args.niter, "seed": args.seed, "backend": backend, "device": args.device}
    return command("train_res_kmeans.py", data_path=data, model_path=model, **sizes, **more)


def infer_command(args: argparse.Namespace, folder: Path, batch: int) -> list[str]:
    paths = {
        "model_path": folder / "model",
        "emb_path": folder / "items.parquet",
        "output_path": folder / "out.parquet",
    }
    return command("infer_res_kmeans.py", **paths, batch_size=batch, device=args.device)


def own(args: argparse.Namespace, what: str, data: Path) -> dict[str, float]:
    """What a yardstick of this file measured, in a process of its own."""
    names = ("dim", "codes", "layers", "niter", "seed", "device")
    return itself(what, "--data", data, *(f"--{name}={getattr(args, name)}" for name in names))[0]


def load(data: Path, dim: int) -> np.ndarray:
    """All embeddings of a file, float32 [n, dim]."""
    return pq.read_table(data)["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim).copy()


def plain_faiss(args: argparse.Namespace) -> dict[str, float]:
    """Residual k-means as one would first write it: faiss.Kmeans a layer, its index for the residual."""
    import faiss

    residual = load(args.data, args.dim)
    start = time.perf_counter()
    for layer in range(args.layers):
        bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": 1 << 30}
        kmeans = faiss.Kmeans(args.dim, args.codes, niter=args.niter, seed=args.seed + layer + 1, **bounds)
        kmeans.train(residual)
        residual -= kmeans.centroids[kmeans.index.search(residual, 1)[1][:, 0]]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "error": float((residual**2).sum(1, dtype=np.float64).mean())}


def bare_products(args: argparse.Namespace) -> dict[str, float]:
    """The matrix products of one encoding alone, in float32: the fastest of three sizes of blocks."""
    import torch

    points = torch.from_numpy(load(args.data, args.dim)).to(args.device)
    columns = torch.randn(args.dim, args.codes, device=args.device)

    def products(room: torch.Tensor) -> None:
        for _ in range(args.layers):
            for some in points.split(len(room)):
                torch.mm(some, columns, out=room[: len(some)])

    best = float("inf")
    for rows in (512, 8192, min(65536, len(points))):
        room = torch.empty(rows, args.codes, device=args.device)  # used again for every block
        best = min(best, *(spent(lambda room=room: products(room)) for _ in range(3)))
    return {"seconds": best}


def bench_train(args: argparse.Namespace, folder: Path) -> None:
    """Training by both backends, beside plain faiss."""
    data = folder / "items.parquet"
    write_items(data, args)
    backends = ["torch"] if args.device == "cuda" else ["faiss", "torch"]
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "products", *backends)}
    errors: dict[str, float] = {}
    for _ in range(args.repeats):
        if args.device == "cpu":
            found = own(args, "faiss", data)
            seconds["plain"].append(found["seconds"])
            errors["plain"] = found["error"]
        seconds["products"].append(own(args, "products", data)["seconds"] * args.niter)
        for backend in backends:
            measured(train_command(args, data, folder / backend, backend))
            manifest = json.loads((folder / backend / "manifest.json").read_text())
            seconds[backend].append(sum(manifest["layer_seconds"]))
            errors[backend] = manifest["layers"][-1]["mse"]
    plain, products = seconds["plain"], median(seconds["products"])
    if plain:
        print(f"plain faiss.Kmeans: {median(plain):.2f} s, error {errors['plain']:.4f}")
    for backend in backends:
        middle = median(seconds[backend])
        print(f"{backend}: {middle:.2f} s ({range_of(seconds[backend])}), error {errors[backend]:.4f}", end="")
        if plain:
            ratio = errors[backend] / errors["plain"]
            print(f"; {median(plain) / middle:.2f} times as fast as plain faiss, {ratio:.4f} of its error", end="")
        print(f"; the products of {args.niter} iterations alone {products:.2f} s, {products / middle:.0%}")


def bench_encode(args: argparse.Namespace, folder: Path) -> None:
    """Greedy encoding beside the bare matrix products, and end to end."""
    data = folder / "items.parquet"
    write_items(data, args)
    short = argparse.Namespace(**{**vars(args), "niter": 1, "points": min(args.points, 4 * args.codes)})
    measured(train_command(short, data, folder / "model", "auto"))
    inner, whole, bare = [], [], []
    for _ in range(args.repeats):
        bare.append(own(args, "products", data)["seconds"])
        measured(infer_command(args, folder, args.points))
        inner.append(json.loads((folder / "out.manifest.json").read_text())["encode_seconds"])
        seconds, gib = measured(infer_command(args, folder, 8192))
        whole.append(seconds)
    a, b, c = median(inner), median(bare), median(whole)
    print(f"bare matrix products: {b:.3f} s ({range_of(bare, 3)})")
    print(
        f"encode: {a:.3f} s ({range_of(inner, 3)}), {args.points / a:,.0f} items/s, {b / a:.0%} of the products' speed"
    )
    print(f"infer_res_kmeans.py end to end: {c:.2f} s, {args.points / c:,.0f} items/s, {gib:.2f} GiB")


def bench_memory(args: argparse.Namespace, folder: Path) -> None:
    """Training and encoding of an input that is larger than the memory they may have."""
    args.points = int(args.gb * 1e9 / (4 * args.dim))
    data = folder / "items.parquet"
    write_items(data, args)
    size = data.stat().st_size / 1e9
    print(f"input: {size:.1f} GB, {args.points:,} items of {args.dim} dimensions", flush=True)
    sample = argparse.Namespace(**{**vars(args), "points": 64 * args.codes})
    for name, line in (
        ("train", train_command(sample, data, folder / "model", "auto")),
        ("infer", infer_command(args, folder, 8192)),
    ):
        seconds, gib = measured(line, args.limit_gib)
        limit = f" (limit {args.limit_gib} GiB)" if args.limit_gib else ""
        print(f"{name}: {seconds:.0f} s, {size * 1e3 / seconds:.0f} MB/s, {gib:.2f} GiB{limit}", flush=True)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=["train", "encode", "memory", "faiss", "products"])
    parser.add_argument("--dim", type=WIDTH, default=256, help="dimensions (256)")
    add_numbers(
        parser,
        points=(100_000, "items"),
        codes=(1024, "codes a layer"),
        layers=(3, "layers"),
        niter=(20, "k-means iterations a layer"),
        centres=(5000, "clusters that the items are drawn from"),
        repeats=(5, "rounds"),
        seed=(0, "of the items and of training"),
    )
    parser.add_argument("--gb", type=POSITIVE, default=20.0, help="memory: size of the input")
    parser.add_argument("--limit_gib", type=POSITIVE, help="memory: private memory that the process may have")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work_dir", type=Path, help="folder for the files; a temporary one by default")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what in ("faiss", "products"):
        found = (plain_faiss if args.what == "faiss" else bare_products)(args)
        args.out.write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(dir=args.work_dir) as folder:
        {"train": bench_train, "encode": bench_encode, "memory": bench_memory}[args.what](args, Path(folder))


if __name__ == "__main__":
    cli(main)()
