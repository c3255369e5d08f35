"""Encode item embeddings to SIDs with trained codebooks, as a stream.

    python infer_res_kmeans.py --model_path out --emb_path item_embedding.parquet --output_path pid2sid.parquet
    python infer_res_kmeans.py --model_path out --emb_path embeddings/ --output_path sids --beam 8

--runner ray: a task a file of the embeddings, on CPUs.
Writes a Parquet file with pid (int64) and codes (list<int32>), and sid_spec.json and a manifest beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import PID2SID
from onerec.flags import COUNT, COUNT_OR_ALL, RAY, ArgumentParser
from onerec.folders import together
from onerec.parquet import write_batches
from onerec.run import Manifest, progress
from onerec.sid import SidSpec
from tokenizer.embeddings import first_of_pids, iter_embeddings
from tokenizer.encoding import encode_on_ray, encoded
from tokenizer.quantizer import SCHEMA, Quantizer, chosen_device, codes_batch, load_quantizer, sid_keys

T = TypeVar("T")
# Collision rate: a SID stands for two items and more. Sizes that fit have 28 % at most (RESULTS.md, quantisers).
MOSTLY = 0.5
COLLIDE_RIGHT = "more codes or layers, or embeddings that tell the items apart"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="model.pt, or the folder that holds it")
    add("--emb_path", required=True, help="Parquet file or folder with pid and embedding")
    output = f"a .parquet file, or a folder for {PID2SID}; <emb_path>_codes.parquet where not given"
    add("--output_path", type=Path, help=output)
    add("--batch_size", type=COUNT, default=8192, help="rows read and encoded at a time")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to encode")
    add("--n_layers", type=COUNT_OR_ALL, default=-1, help="use only the first layers (-1: all)")
    add("--beam", type=COUNT, default=1, help="residual paths searched; the best reconstruction is kept (1: greedy)")
    parser.add_runner()
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    if args.runner == RAY and args.device == "cuda":
        raise InputError("--device", "the tasks of --runner ray encode on CPUs", "cpu, or --runner local")
    if args.output_path is None:
        source = Path(args.emb_path)
        args.output_path = source.with_name(f"{source.stem}_codes.parquet")
    return args


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Pass ``items`` through, the next being made in a thread while this one is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "read") as pool:
        waiting = pool.submit(next, iterator, end)
        while (item := waiting.result()) is not end:
            waiting = pool.submit(next, iterator, end)
            yield item


def encode_stream(
    args: argparse.Namespace, model: Quantizer, spec: SidSpec, manifest: Manifest, keys: list[np.ndarray]
) -> Iterator[pa.RecordBatch]:
    """Encoded batches; a pid that comes again is dropped and counted. Collects the SIDs in ``keys``."""
    manifest.extra["encode_seconds"] = 0.0
    first = first_of_pids(args.emb_path)
    if args.runner == RAY:
        settings = (spec.n_layers, args.beam, args.batch_size)
        stream = encode_on_ray(args.emb_path, args.model_path, settings, first, manifest)
    else:
        vectors = ahead(iter_embeddings(args.emb_path, model.dim, manifest, args.batch_size, first))
        stream = encoded(vectors, model, spec.n_layers, args.beam, manifest)
    for pids, codes in progress(stream, "encode", len(first), size=lambda batch: len(batch[0])):
        keys.append(sid_keys(codes, spec))
        yield codes_batch(pids, codes)
    bad = sum(manifest.dropped.values())
    manifest.check_bad_ratio(args.emb_path, bad, len(first), args.max_bad_ratio)
    if bad == len(first):
        raise InputError(args.emb_path, f"has no usable row ({manifest.dropped_text()})", "at least one item")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    device, model = chosen_device("cpu" if args.runner == RAY else args.device), load_quantizer(args.model_path)
    n_layers = model.n_layers if args.n_layers == -1 else args.n_layers
    if not 1 <= n_layers <= model.n_layers:
        what = f"has {model.n_layers} layers, not {n_layers}"
        raise InputError(args.model_path, what, f"--n_layers 1 to {model.n_layers}")
    if args.beam > 1 and not model.residual:
        raise InputError("--beam", f"a quantiser of kind {model.kind} has no residual paths to search", "--beam 1")
    model.to(device)
    spec = SidSpec(model.spec.codebook_sizes[:n_layers])
    output = args.output_path if args.output_path.suffix == ".parquet" else args.output_path / PID2SID
    manifest, keys = Manifest("infer_res_kmeans", args), []
    with together():  # the codes of one run never beside the codebooks of another
        rows = write_batches(output, SCHEMA, encode_stream(args, model, spec, manifest, keys))
        said = note_codes(manifest, output, spec, np.concatenate(keys))
    print(f"encoded {rows:,} items to {output}: {said}")


def note_codes(manifest: Manifest, output: Path, spec: SidSpec, keys: np.ndarray) -> str:
    """Write what goes beside a pid2sid.parquet, sid_spec.json and a manifest; says how its SIDs (`sid_keys`) meet."""
    spec.save(output.parent)
    rows, distinct = len(keys), len(np.unique(keys))
    rate = 1 - distinct / rows
    manifest.extra |= {"distinct_sids": distinct, "collision_rate": round(rate, 6)}
    if rate > MOSTLY:
        manifest.warn(f"{rows:,} items have {distinct:,} SIDs: most collide", COLLIDE_RIGHT)
    manifest.output(output, rows)
    manifest.write(output.parent, f"{output.stem}.manifest.json")
    return f"{distinct:,} distinct SIDs, collision rate {rate:.2%}; {manifest.dropped_text()}"


if __name__ == "__main__":
    cli(main)()
