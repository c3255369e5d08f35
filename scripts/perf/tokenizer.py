"""Speed of training and encoding residual k-means, beside the matrix products that they cannot do without.

    python scripts/perf/tokenizer.py                                                  # 100,000 x 256, 3 x 1,024 codes
    python scripts/perf/tokenizer.py --points 200000 --dim 4096 --codes 8192 --niter 5 --device cuda       # one GPU

Items are drawn around cluster centres of random sizes. The scripts run as they are and note in their manifests what
they took without reading the input.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, add_numbers, range_of, spent

from onerec.cli import cli
from onerec.flags import WIDTH

LAYERS, CENTRES, BLOCK = 3, 5000, 1 << 16


def write_items(file: Path, points: int, dim: int) -> None:
    """Items around centres, some of which are drawn more often."""
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((CENTRES, dim), dtype=np.float32)
    share = rng.lognormal(0, 1, CENTRES)
    schema = pa.schema([("pid", pa.int64()), ("embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, points, BLOCK):
            which = rng.choice(CENTRES, min(BLOCK, points - start), p=share / share.sum())
            block = middle[which] + rng.standard_normal((len(which), dim), dtype=np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), dim)
            writer.write_table(pa.table({"pid": np.arange(start, start + len(block)), "embedding": column}))


def run(script: str, **flags: Any) -> None:
    """A script of the tokenizer in a process of its own."""
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    ran = subprocess.run([sys.executable, ROOT / "tokenizer" / script, *given], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stdout + ran.stderr)


def products(points: int, dim: int, codes: int, device: str) -> float:
    """Seconds of the matrix products of one encoding, in float32: the fastest of three sizes of blocks."""
    import torch

    rows, columns = torch.randn(points, dim, device=device), torch.randn(dim, codes, device=device)

    def multiply(room: torch.Tensor) -> None:
        for _ in range(LAYERS):
            for some in rows.split(len(room)):
                torch.mm(some, columns, out=room[: len(some)])

    rooms = [torch.empty(size, codes, device=device) for size in (512, 8192, min(65536, points))]
    return min(spent(lambda room=room: multiply(room)) for room in rooms for _ in range(3))


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--dim", type=WIDTH, default=256, help="dimensions (256)")
    add_numbers(parser, points=(100_000, "items"), codes=(1024, "codes a layer"), niter=(20, "iterations a layer"))
    add_numbers(parser, repeats=(5, "rounds"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    training, encoding, bare = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_items(folder / "items.parquet", args.points, args.dim)
        sizes = {"n_layers": LAYERS, "codebook_size": args.codes, "dim": args.dim, "max_points": args.points}
        paths = {"emb_path": folder / "items.parquet", "output_path": folder / "out.parquet"}
        for _ in range(args.repeats):
            more = {"niter": args.niter, "backend": "auto", "device": args.device, "data_path": paths["emb_path"]}
            run("train_res_kmeans.py", model_path=folder / "model", **sizes, **more)
            training.append(sum(json.loads((folder / "model/manifest.json").read_text())["layer_seconds"]))
            run("infer_res_kmeans.py", model_path=folder / "model", **paths, device=args.device)
            encoding.append(json.loads((folder / "out.manifest.json").read_text())["encode_seconds"])
            bare.append(products(args.points, args.dim, args.codes, args.device))
    train, encode, least = (statistics.median(seconds) for seconds in (training, encoding, bare))
    rate = f"{args.points / encode:,.0f} items/s"
    print(f"training: {train:.2f} s ({range_of(training)}), {args.niter * least / train:.0%} of the products' speed")
    print(f"encoding: {encode:.3f} s ({range_of(encoding, 3)}), {rate}, {least / encode:.0%} of the products' speed")


if __name__ == "__main__":
    cli(main)()
