"""Import published SIDs into the tables that the other stages read.

    python import_codes.py --codes index.json --output_path sids/pid2sid.parquet --codebook_size 256
    python import_codes.py --codes index.json --output_path sids/pid2sid.parquet --codebook_size 256 --n_layers 3

Reads a JSON object of item id to codes, as published beside several papers: ``{"7": [220, 123, 2, 149]}``. Codes may
also be token texts whose number is the code, ``["<a_220>", "<b_123>", "<c_2>"]``. ``--n_layers`` keeps the first
layers: the last one of such files often only numbers the items of a SID. ``--embedding_path`` also writes embeddings
that say what the codes say, for SIDs of one's own from them and other sources (embed_items.py --concat).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import PID2SID
from onerec.flags import CODES, LAYERS, SEED, WIDTH, ArgumentParser
from onerec.folders import together
from onerec.parquet import embedding_table, whole_number, write_batches, write_table
from onerec.run import Manifest, read_json
from onerec.sid import SidSpec
from onerec.sparse import unit
from tokenizer.infer_res_kmeans import note_codes
from tokenizer.quantizer import SCHEMA, codes_batches, sid_keys

_TOKEN = re.compile(r"<[^<>]*?_(\d+)>")


def to_code(value: Any) -> int:
    """A code given as a number or as a token; raises ValueError where it is neither."""
    if isinstance(value, str):
        match = _TOKEN.fullmatch(value)
        value = int(match[1]) if match else value
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a code")
    return value


def read_codes(path: Path, spec: SidSpec, manifest: Manifest, max_bad_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """(pids int64 [n] ascending, codes int32 [n, layers]); what does not fit ``spec`` is dropped and counted."""
    value = read_json(path)
    if not isinstance(value, dict) or not value:
        raise InputError(path, "is not a JSON object with items", '{"item id": [codes]}')
    found: dict[int, list[int]] = {}
    for name, codes in value.items():
        try:
            pid, row = whole_number(int(name)), [to_code(code) for code in codes[: spec.n_layers]]
        except (TypeError, ValueError, KeyError):  # of a dictionary, from Python 3.12 on
            manifest.drop("no whole number as item id, or no codes")
            continue
        if spec.check(row):
            short = len(row) != spec.n_layers
            manifest.drop("too few codes" if short else "a code outside its codebook")
        elif pid in found:
            manifest.drop("item id stands twice")
        else:
            found[pid] = row
    manifest.input(path, len(value))
    manifest.check_bad_ratio(path, len(value) - len(found), len(value), max_bad_ratio)
    pids = np.array(sorted(found), np.int64)
    return pids, np.array([found[pid] for pid in pids.tolist()], np.int32)


def code_vectors(codes: np.ndarray, codebook_size: int, dim: int, seed: int) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length, of ``codes`` [n, layers]: items are near where they share codes.

    A code is a random direction (seeded), half as long as those of the layer before: what a layer of residual codes
    adds is smaller, and an agreement in it alone says little.
    """
    rng, vectors = np.random.default_rng(seed), np.zeros((len(codes), dim))
    for layer in range(codes.shape[1]):
        vectors += 0.5**layer * unit(rng.normal(size=(codebook_size, dim)))[codes[:, layer]]
    return unit(vectors).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--codes", type=Path, required=True, help="JSON object: item id to codes")
    add("--output_path", type=Path, required=True, help=f"a .parquet file, or a folder for {PID2SID}")
    add("--codebook_size", type=CODES, required=True, help="codes of a layer")
    add("--n_layers", type=LAYERS, default=3, help="layers to keep, the first ones")
    last = "extra_layer: the last layer that is kept numbers the items of a SID"
    add("--collision", default="none", choices=("none", "extra_layer"), help=last)
    parser.add_max_bad_ratio()
    add("--embedding_path", type=Path, help="Parquet file for pid and embedding of the codes")
    add("--embedding_dim", type=WIDTH, default=64, help="dimensions of --embedding_path")
    add("--seed", type=SEED, default=0, help="seed of --embedding_path")
    args = parser.parse_args(argv)
    try:
        spec = SidSpec((args.codebook_size,) * args.n_layers, collision=args.collision)
    except ValueError as error:
        raise InputError("--codebook_size, --n_layers", str(error), "3 layers of 256 codes, say") from None
    manifest = Manifest("import_codes", args)
    pids, codes = read_codes(args.codes, spec, manifest, args.max_bad_ratio)
    if not len(pids):
        raise InputError(args.codes, f"has no usable item ({manifest.dropped_text()})", "at least one")
    output = args.output_path if args.output_path.suffix == ".parquet" else args.output_path / PID2SID
    with together():
        write_batches(output, SCHEMA, codes_batches(pids, codes))
        if args.embedding_path:
            vectors = code_vectors(codes, args.codebook_size, args.embedding_dim, args.seed)
            write_table(args.embedding_path, embedding_table(pids, vectors))
            manifest.output(args.embedding_path, len(pids))
        said = note_codes(manifest, output, spec, sid_keys(codes, spec))
    print(f"took {len(pids):,} items into {output}: {said}")


if __name__ == "__main__":
    cli(main)()
