"""Time and memory of what is made of pairs of items, at the size of a release.

    python scripts/perf/counting.py                       # 20,000 users with 300 of 200,000 items each
    python scripts/perf/counting.py itemknn --users 400   # one of: itemknn, cooccurrence, embeddings

itemknn and cooccurrence are the baselines of `benchmarks.recommenders.counting`, learnt and then asked for 1,000
histories; embeddings are those of data/cooccurrence.py (64 dimensions, window 5) from file to file. Popular items come
more often. Each runs in a process of its own; memory is its largest resident size, the making of the input included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ArgumentParser, add_clock, add_numbers, measured

from onerec.cli import cli

ITEMS, HISTORY = 200_000, 300  # in all, of a user
WAYS = ("itemknn", "cooccurrence", "embeddings")


def run(args: argparse.Namespace) -> None:
    """One way, in this process."""
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
    add_numbers(parser, users=(20_000, "users"))
    add_clock(parser)
    parser.add_argument("--inside", choices=WAYS, help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args()
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"{', '.join(sorted(unknown))}: of {', '.join(WAYS)}")
    if args.inside:
        run(args)
        return
    size = ["--users", str(args.users)]
    print(f"{args.users:,} users with {HISTORY} of {ITEMS:,} items")
    for way in args.ways or WAYS:
        seconds, gib = measured([sys.executable, __file__, "--inside", way, *size], clock=args.clock)
        print(f"{way:13s} {seconds:8.1f} s {gib:6.2f} GiB", flush=True)


if __name__ == "__main__":
    cli(main)()
