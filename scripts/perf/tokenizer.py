"""Speed and memory of the tokenizer, beside plain faiss and beside the matrix products that it cannot do without.

    python scripts/perf/tokenizer.py train --repeats 5            # 100,000 x 256, 3 x 1,024 codes, beside faiss.Kmeans
    python scripts/perf/tokenizer.py encode --repeats 5           # beside the bare matrix products
    python scripts/perf/tokenizer.py memory --gb 20 --limit_gib 3 --work_dir /big/disk
    python scripts/perf/tokenizer.py encode --points 1000000 --dim 4096 --codes 8192 --device cuda   # one GPU
    python scripts/perf/tokenizer.py train  --points 1000000 --dim 4096 --codes 8192 --device cuda

Items are drawn around cluster centres of random sizes. Both sides of a comparison take turns, each in a process of its own, with the
same threads; times are without reading the input (the scripts note them in their manifests), except for `memory` and where
it says end to end. A ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, measured

sys.path.insert(0, str(ROOT))
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, SEED, WIDTH, ArgumentParser

BLOCK = 1 << 14
CENTRES = 5000  # clusters that the items are drawn from


def items(n: int, dim: int, centres: int, seed: int):
    """Blocks float32 [<= BLOCK, dim] of ``n`` items around ``centres`` points, some of them drawn more often."""
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centres, dim), dtype=np.float32)
    share = rng.lognormal(0, 1, centres)
    for start in range(0, n, BLOCK):
        which = rng.choice(centres, min(BLOCK, n - start), p=share / share.sum())
        yield middle[which] + rng.standard_normal((len(which), dim), dtype=np.float32)


def write_items(file: Path, args: argparse.Namespace, rows_per_group: int = 1 << 20) -> None:
    """Write the items as Parquet; a row group is as large as pandas makes it."""
    size = max(rows_per_group // BLOCK, 1) * BLOCK
    kind = pa.list_(pa.float32(), args.dim)
    with pq.ParquetWriter(
        file, pa.schema([("pid", pa.int64()), ("embedding", kind)]), compression="none", use_dictionary=False
    ) as writer:
        held, first = [], 0

        def flush() -> None:
            nonlocal first
            tables = [
                pa.table({"pid": np.arange(first + at, first + at + len(block)), "embedding": column})
                for at, block, column in held
            ]
            writer.write_table(pa.concat_tables(tables), row_group_size=size)
            first += sum(len(block) for _, block, _ in held)
            held.clear()

        at = 0
        for block in items(args.points, args.dim, CENTRES, args.seed):
            held.append((at, block, pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), args.dim)))
            at += len(block)
            if at >= size:
                flush()
                at = 0
        if held:
            flush()


def script(name: str, *arguments: Any) -> list[str]:
    """The command line of a script of the tokenizer."""
    return [sys.executable, str(ROOT / "tokenizer" / name), *map(str, arguments)]


def train_command(args: argparse.Namespace, data: Path, model: Path, backend: str) -> list[str]:
    return script(
        "train_res_kmeans.py", "--data_path", data, "--model_path", model, "--n_layers", args.layers,
        "--codebook_size", args.codes, "--dim", args.dim, "--niter", args.niter, "--max_points", args.points,
        "--seed", args.seed, "--backend", backend, "--device", args.device,
    )  # fmt: skip


def infer_command(args: argparse.Namespace, data: Path, model: Path, output: Path, batch: int) -> list[str]:
    return script(
        "infer_res_kmeans.py", "--model_path", model, "--emb_path", data, "--output_path", output,
        "--batch_size", batch, "--device", args.device,
    )  # fmt: skip


def own(args: argparse.Namespace, what: str, *more: Any) -> dict[str, float]:
    """What a yardstick of this file measured, in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        flags = [f"--{name}={getattr(args, name)}" for name in ("points", "dim", "codes", "layers", "niter", "seed", "centres", "device")]  # fmt: skip
        measured([sys.executable, __file__, what, "--out", out.name, *flags, *map(str, more)])
        return json.loads(Path(out.name).read_text())


def load(data: Path, dim: int) -> np.ndarray:
    """All embeddings of a file, float32 [n, dim]."""
    return pq.read_table(data)["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, dim).copy()


def plain_faiss(args: argparse.Namespace) -> dict[str, float]:
    """Residual k-means as one would first write it: faiss.Kmeans a layer, its index for the residual."""
    import faiss

    residual = load(args.data, args.dim)
    start = time.perf_counter()
    for layer in range(args.layers):
        kmeans = faiss.Kmeans(
            args.dim, args.codes, niter=args.niter, seed=args.seed + layer + 1,
            min_points_per_centroid=1, max_points_per_centroid=1 << 30,
        )  # fmt: skip
        kmeans.train(residual)
        residual -= kmeans.centroids[kmeans.index.search(residual, 1)[1][:, 0]]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "error": float((residual**2).sum(1, dtype=np.float64).mean())}


def bare_products(args: argparse.Namespace) -> dict[str, float]:
    """The matrix products of one encoding alone, in float32: the fastest of three sizes of blocks, the output used again."""
    import torch

    points = torch.from_numpy(load(args.data, args.dim)).to(args.device)
    columns = torch.randn(args.dim, args.codes, device=args.device)
    best = float("inf")
    for rows in (512, 8192, min(65536, len(points))):
        room = torch.empty(rows, args.codes, device=args.device)
        for _ in range(3):
            _wait(args.device)
            start = time.perf_counter()
            for _ in range(args.layers):
                for first in range(0, len(points), rows):
                    some = points[first : first + rows]
                    torch.mm(some, columns, out=room[: len(some)])
            _wait(args.device)
            best = min(best, time.perf_counter() - start)
    return {"seconds": best}


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def ratio_line(name: str, ours: list[float], theirs: list[float]) -> str:
    """Median seconds of both sides and their ratio."""
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"{name}: {a:.2f} s ({min(ours):.2f} to {max(ours):.2f}), {b / a:.2f} times as fast as the yardstick"


def bench_train(args: argparse.Namespace, folder: Path) -> None:
    """Training by both backends, beside plain faiss."""
    data = folder / "items.parquet"
    write_items(data, args)
    backends = ["torch"] if args.device == "cuda" else ["faiss", "torch"]
    seconds: dict[str, list[float]] = {name: [] for name in ("plain", "products", *backends)}
    errors: dict[str, float] = {}
    for _ in range(args.repeats):
        if args.device == "cpu":
            found = own(args, "faiss", "--data", data)
            seconds["plain"].append(found["seconds"])
            errors["plain"] = found["error"]
        seconds["products"].append(own(args, "products", "--data", data)["seconds"] * args.niter)
        for backend in backends:
            measured(train_command(args, data, folder / backend, backend))
            manifest = json.loads((folder / backend / "manifest.json").read_text())
            seconds[backend].append(sum(manifest["layer_seconds"]))
            errors[backend] = manifest["layers"][-1]["mse"]
    if seconds["plain"]:
        print(f"plain faiss.Kmeans: {statistics.median(seconds['plain']):.2f} s, error {errors['plain']:.4f}")
    products = statistics.median(seconds["products"])
    for backend in backends:
        if seconds["plain"]:
            print(
                f"{ratio_line(backend, seconds[backend], seconds['plain'])}; error {errors[backend]:.4f}, "
                f"{errors[backend] / errors['plain']:.4f} of its"
            )
        median = statistics.median(seconds[backend])
        print(
            f"{backend}: {median:.2f} s; the products of {args.niter} iterations alone {products:.2f} s, {products / median:.0%}"
        )


def bench_encode(args: argparse.Namespace, folder: Path) -> None:
    """Greedy encoding beside the bare matrix products, and end to end."""
    data, model = folder / "items.parquet", folder / "model"
    write_items(data, args)
    short = argparse.Namespace(**{**vars(args), "niter": 1, "points": min(args.points, 4 * args.codes)})
    measured(train_command(short, data, model, "auto"))
    inner, whole, bare = [], [], []
    for _ in range(args.repeats):
        bare.append(own(args, "products", "--data", data)["seconds"])
        seconds, gib = measured(infer_command(args, data, model, folder / "out.parquet", args.points))
        inner.append(json.loads((folder / "out.manifest.json").read_text())["encode_seconds"])
        seconds, gib = measured(infer_command(args, data, model, folder / "out.parquet", 8192))
        whole.append(seconds)
    a, b = statistics.median(inner), statistics.median(bare)
    print(f"bare matrix products: {b:.3f} s ({min(bare):.3f} to {max(bare):.3f})")
    print(
        f"encode: {a:.3f} s ({min(inner):.3f} to {max(inner):.3f}), {args.points / a:,.0f} items/s, {b / a:.0%} of the products' speed"
    )
    print(
        f"infer_res_kmeans.py end to end: {statistics.median(whole):.2f} s, {args.points / statistics.median(whole):,.0f} items/s, {gib:.2f} GiB"
    )


def bench_memory(args: argparse.Namespace, folder: Path) -> None:
    """Training and encoding of an input that is larger than the memory they may have."""
    args.points = int(args.gb * 1e9 / (4 * args.dim))
    data = folder / "items.parquet"
    write_items(data, args)
    size = data.stat().st_size / 1e9
    print(f"input: {size:.1f} GB, {args.points:,} items of {args.dim} dimensions", flush=True)
    sample = argparse.Namespace(**{**vars(args), "points": 64 * args.codes})
    for name, command in (
        ("train", train_command(sample, data, folder / "model", "auto")),
        ("infer", infer_command(args, data, folder / "model", folder / "out.parquet", 8192)),
    ):
        seconds, gib = measured(command, args.limit_gib)
        limit = f" (limit {args.limit_gib} GiB)" if args.limit_gib else ""
        print(f"{name}: {seconds:.0f} s, {size * 1e3 / seconds:.0f} MB/s, {gib:.2f} GiB{limit}", flush=True)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=["train", "encode", "memory", "faiss", "products"])
    parser.add_argument("--points", type=COUNT, default=100_000)
    parser.add_argument("--dim", type=WIDTH, default=256)
    parser.add_argument("--codes", type=COUNT, default=1024, help="codes a layer")
    parser.add_argument("--layers", type=COUNT, default=3)
    parser.add_argument("--niter", type=COUNT, default=20, help="k-means iterations a layer")
    parser.add_argument("--repeats", type=COUNT, default=5)
    parser.add_argument("--gb", type=POSITIVE, default=20.0, help="memory: size of the input")
    parser.add_argument("--limit_gib", type=POSITIVE, help="memory: private memory that the process may have")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=SEED, default=0)
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
