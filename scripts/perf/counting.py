"""Time and memory of what grows with the items, at the size of a release: pairs of them, and their catalogue.

    python scripts/perf/counting.py                       # 20,000 users with 300 of 200,000 items each
    python scripts/perf/counting.py itemknn --users 400   # one of: itemknn, cooccurrence, embeddings
    python scripts/perf/counting.py catalogue             # 10,000,000 SIDs of 3 x 8,192 codes

itemknn and cooccurrence are the baselines of `benchmarks.recommenders.counting`, learnt and then asked for 1,000
histories; embeddings are those of data/cooccurrence.py (64 dimensions, window 5) from file to file. Popular items come
more often. Each runs in a process of its own; memory is its largest resident size, the making of the input included.
catalogue is `ItemIndex.load` of a pid2sid.parquet, first and again, each with 1,000 look-ups in a process of its own:
seconds of the load, the process' largest resident size.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ArgumentParser, add_clock, add_numbers, itself, measured

from onerec.cli import cli
from onerec.files import PID2SID
from onerec.sid import SidSpec

ITEMS, HISTORY = 200_000, 300  # in all, of a user
CATALOGUE = "catalogue"
WAYS = ("itemknn", "cooccurrence", "embeddings", CATALOGUE)
SPEC = SidSpec((8192,) * 3)


def write_catalogue(folder: Path, sids: int) -> None:
    """A pid2sid.parquet with as many items, their SIDs drawn evenly."""
    rng = np.random.default_rng(0)
    pids = rng.permutation(2 * sids)[:sids]
    codes = np.stack([rng.integers(0, size, sids, np.int32) for size in SPEC.codebook_sizes], 1)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(sids + 1, dtype=np.int32) * SPEC.n_layers), codes.ravel())
    pq.write_table(pa.table({"pid": pids, "codes": lists}), folder / PID2SID)


def load_catalogue(folder: Path, clock: str) -> float:
    """Seconds of a load, with look-ups behind it."""
    from onerec.catalog import ItemIndex

    now = time.perf_counter if clock == "wall" else time.process_time
    start = now()
    index = ItemIndex.load(folder / PID2SID, SPEC)
    seconds = now() - start
    for row in np.random.default_rng(0).integers(0, len(index.sids), 1000).tolist():
        assert index.pids_of(tuple(index.sids[row].tolist())) == index.pids_at(row)
    return seconds


def run(args: argparse.Namespace) -> None:
    """One way, in this process."""
    if args.inside == CATALOGUE:
        args.out.write_text(json.dumps({"seconds": load_catalogue(args.folder, args.clock)}))
        return
    drawn = np.random.default_rng(0).random((args.users, HISTORY))
    taken = (ITEMS * drawn**2).astype(np.int64)
    if args.inside == "embeddings":
        from data import cooccurrence

        with tempfile.TemporaryDirectory() as folder:
            columns = {"uid": np.arange(args.users), "split": pa.array(np.zeros(args.users, np.int64))}
            columns["hist_video_pid"] = pa.array(list(taken[:, :-1]))
            columns["target_video_pid"] = pa.array(list(taken[:, -1:]))
            pq.write_table(pa.table(columns), f"{folder}/logs.parquet")
            cooccurrence.main(["--input", f"{folder}/logs.parquet", "--output_path", f"{folder}/embedding.parquet"])
        return
    from benchmarks.recommenders import RECOMMENDERS
    from benchmarks.recommenders.base import Options, Training

    learnt = RECOMMENDERS[args.inside](Training([(row[:-1], row[-1:]) for row in taken.tolist()]), Options())
    asked = taken[:1000].tolist()
    learnt.rank(asked, 32, [()] * len(asked))


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("ways", nargs="*", help=f"of {', '.join(WAYS)} (all)")
    add_numbers(parser, users=(20_000, "users"), sids=(10_000_000, "items of the catalogue"))
    add_clock(parser)
    parser.add_argument("--inside", choices=WAYS, help=argparse.SUPPRESS)  # the process that is measured
    for name in ("--folder", "--out"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"{', '.join(sorted(unknown))}: of {', '.join(WAYS)}")
    if args.inside:
        run(args)
        return
    size = ["--users", str(args.users)]
    print(f"{args.users:,} users with {HISTORY} of {ITEMS:,} items")
    for way in args.ways or WAYS:
        if way == CATALOGUE:
            with tempfile.TemporaryDirectory() as folder:
                write_catalogue(Path(folder), args.sids)
                for when in ("first", "again"):
                    took, gib = itself("--inside", way, "--folder", folder, "--clock", args.clock)
                    print(f"{way}, {args.sids:,} SIDs, {when}: {took['seconds']:.2f} s {gib:6.2f} GiB", flush=True)
            continue
        seconds, gib = measured([sys.executable, __file__, "--inside", way, *size], clock=args.clock)
        print(f"{way:13s} {seconds:8.1f} s {gib:6.2f} GiB", flush=True)


if __name__ == "__main__":
    cli(main)()
