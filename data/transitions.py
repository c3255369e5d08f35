"""A table of what follows each item in training: decayed transitions, an item prior for the benchmark.

    python transitions.py --input onerec_bench_release.parquet --output_path item_transitions.parquet

The formula is that of onerec/transitions.py. Counted are the training rows alone (split 0), never test and validation
rows, so benchmarks/evaluate.py --prior may be asked about both. --catalogue video_ad takes videos and, where the input
has them, ads; product takes the goods, which have numbers of their own. A row an item, ``pid``, with its followers,
best first, in ``pids`` and ``scores``; an item that nothing follows gets no row.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.cooccurrence import sequences
from data.onerec_data.build import Built
from data.onerec_data.layout import PARTS, load_layout
from data.onerec_data.users import Users, available_parts
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.parquet import write_table
from onerec.run import Manifest
from onerec.tasks import PRODUCT, VIDEO_AD
from onerec.transitions import Transitions

GOODS = "goods"
_ALL = [part.split("_")[1] for part in PARTS if part.startswith("hist_") and part.endswith("_pid")]
DOMAINS = {VIDEO_AD: [domain for domain in _ALL if domain != GOODS], PRODUCT: [GOODS]}


def table_of(transitions: Transitions) -> pa.Table:
    """``pid`` int64, ``pids`` lists of int64 and ``scores`` lists of float32; a row an item that something follows."""
    matrix = transitions.matrix
    rows = np.flatnonzero(np.diff(matrix.indptr))
    offsets = pa.array(np.append(matrix.indptr[rows], matrix.nnz), pa.int32())
    pids = pa.ListArray.from_arrays(offsets, pa.array(transitions.pids[matrix.indices], pa.int64()))
    scores = pa.ListArray.from_arrays(offsets, pa.array(matrix.data, pa.float32()))
    return pa.table({"pid": pa.array(transitions.pids[rows], pa.int64()), "pids": pids, "scores": scores})


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="users' table of the release, or of --layout")
    parser.add_argument("--output_path", type=Path, required=True, help="Parquet file with pid, pids and scores")
    parser.add_argument("--layout", default="release", help="release, simple, or a JSON file")
    parser.add_argument("--catalogue", choices=DOMAINS, default=VIDEO_AD, help="which items")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    manifest, layout = Manifest("transitions", args), load_layout(args.layout)
    first, *others = DOMAINS[args.catalogue]
    known = available_parts(args.input, layout)
    domains = [first, *(d for d in others if {f"hist_{d}_pid", f"target_{d}_pid"} <= known)]
    users = Users(args.input, [f"{side}_{domain}_pid" for domain in domains for side in ("hist", "target")], [], layout)
    left_out = Built()
    found = list(sequences(users, layout, domains, left_out))
    users.note(manifest, left_out, args.max_bad_ratio)
    items = np.concatenate(found) if found else np.empty(0, np.int64)
    table = table_of(Transitions.learn(items, list(map(len, found))))
    if not table.num_rows:
        raise InputError(args.input, "has no two items in one training row", "histories of two items or more")
    write_table(args.output_path, table)
    manifest.output(args.output_path, table.num_rows)
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    counts = f"{table.num_rows:,} items from {len(found):,} training sequences"
    print(f"what follows {counts} in {args.output_path}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
