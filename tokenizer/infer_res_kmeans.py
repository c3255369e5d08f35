"""Encode item embeddings to SIDs with trained codebooks, as a stream.

    python infer_res_kmeans.py --model_path out/model.pt --emb_path item_embedding.parquet --output_path pid2sid.parquet

Writes a Parquet file with pid (int64) and codes (list<int32>), and sid_spec.json and a manifest beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from onerec.errors import InputError, cli
from onerec.files import PID2SID
from onerec.parquet import write_batches
from onerec.run import Manifest, progress
from onerec.sid import SidSpec
from tokenizer.embeddings import iter_embeddings
from tokenizer.res_kmeans import MODEL_FILE, ResKmeans

SCHEMA = pa.schema([("pid", pa.int64()), ("codes", pa.list_(pa.int32()))])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model_path", type=Path, required=True, help="model.pt, or the folder that holds it"
    )
    parser.add_argument("--emb_path", required=True, help="Parquet file or folder with pid and embedding")
    parser.add_argument(
        "--output_path", type=Path, required=True, help=f"a .parquet file, or a folder for {PID2SID}"
    )
    parser.add_argument("--batch_size", type=int, default=8192, help="rows encoded at a time")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to encode")
    parser.add_argument("--n_layers", type=int, default=-1, help="use only the first layers (-1: all)")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    return parser.parse_args(argv)


def encoder(model: ResKmeans, n_layers: int, device: str):
    """A function from vectors float32 [b, dim] to codes int32 [b, n_layers] on ``device`` (cuda: torch, cpu: faiss)."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "cuda is not available on this machine", "cpu or auto")
    if device == "cpu" or not torch.cuda.is_available():
        return lambda vectors: model.encode(vectors, n_layers)
    centroids = [torch.from_numpy(layer).cuda() for layer in model.centroids[:n_layers]]

    def on_gpu(vectors: np.ndarray) -> np.ndarray:
        residual, codes = torch.from_numpy(vectors).cuda(), []
        for layer in centroids:
            # |x - c|^2 without |x|^2, which is the same for every centroid.
            codes.append(torch.argmin((layer**2).sum(1) - 2 * residual @ layer.T, dim=1))
            residual = residual - layer[codes[-1]]
        return torch.stack(codes, 1).int().cpu().numpy()

    return on_gpu


def encode_stream(
    args: argparse.Namespace, model: ResKmeans, n_layers: int, manifest: Manifest, sids: list[np.ndarray]
) -> Iterator[pa.RecordBatch]:
    """Encoded batches; a pid that comes again is dropped and counted. Collects the codes in ``sids``."""
    encode, seen = encoder(model, n_layers, args.device), set()
    stream = iter_embeddings(args.emb_path, model.dim, manifest, args.batch_size)
    for pids, vectors in progress(stream, "encode", size=lambda batch: len(batch[0])):
        first = np.array([pid not in seen and not seen.add(pid) for pid in pids.tolist()], dtype=bool)
        manifest.drop("pid stands twice", int((~first).sum()))
        codes = encode(vectors[first]) if first.any() else np.zeros((0, n_layers), np.int32)
        sids.append(codes)
        offsets = np.arange(len(codes) + 1, dtype=np.int32) * n_layers
        lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(codes.ravel()))
        yield pa.RecordBatch.from_arrays([pa.array(pids[first]), lists], schema=SCHEMA)
    bad, total = sum(manifest.dropped.values()), sum(manifest.inputs.values())
    manifest.check_bad_ratio(args.emb_path, bad, total, args.max_bad_ratio)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    model_file = args.model_path / MODEL_FILE if args.model_path.is_dir() else args.model_path
    model = ResKmeans.load(model_file)
    n_layers = model.n_layers if args.n_layers == -1 else args.n_layers
    if not 1 <= n_layers <= model.n_layers:
        raise InputError(
            model_file, f"has {model.n_layers} layers, not {n_layers}", f"--n_layers 1 to {model.n_layers}"
        )
    if args.batch_size < 1:
        raise InputError("--batch_size", f"{args.batch_size} is not a positive number", "at least 1")
    output = args.output_path if args.output_path.suffix == ".parquet" else args.output_path / PID2SID
    manifest, sids = Manifest("infer_res_kmeans", args), []
    rows = write_batches(output, SCHEMA, encode_stream(args, model, n_layers, manifest, sids))
    spec = SidSpec(model.spec.codebook_sizes[:n_layers])
    spec.save(output.parent)
    distinct = len(np.unique(np.concatenate(sids), axis=0))
    manifest.extra |= {
        "distinct_sids": distinct,
        "collision_rate": round(1 - distinct / rows, 6) if rows else 0.0,
    }
    manifest.output(output, rows)
    manifest.write(output.parent, f"{output.stem}.manifest.json")
    print(
        f"encoded {rows:,} items to {output}: {distinct:,} distinct SIDs, collision rate "
        f"{manifest.extra['collision_rate']:.2%}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
