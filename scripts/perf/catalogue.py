"""Time and memory of opening a large catalogue: `ItemIndex.load` of a pid2sid.parquet, first and again.

    python scripts/perf/catalogue.py                # 10,000,000 items with SIDs of 3 x 8,192 codes
    python scripts/perf/catalogue.py --items 1000000 --clock cpu

Each load runs in a process of its own and is followed by 1,000 look-ups at random places. Memory is that process'
largest resident size, libraries included: with the load, and with the look-ups, whose pages of the mapped file count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import CLOCKS, ArgumentParser, add_numbers

from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.files import PID2SID
from onerec.sid import SidSpec

SPEC = SidSpec((8192,) * 3)


def write_catalogue(folder: Path, items: int) -> None:
    """A pid2sid.parquet of as many items, their SIDs drawn evenly."""
    rng = np.random.default_rng(0)
    pids = rng.permutation(2 * items)[:items]
    codes = np.stack([rng.integers(0, size, items, np.int32) for size in SPEC.codebook_sizes], 1)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(items + 1, dtype=np.int32) * SPEC.n_layers), codes.ravel())
    pq.write_table(pa.table({"pid": pids, "codes": lists}), folder / PID2SID)


def load(folder: Path, clock: str) -> None:
    """Print the seconds of a load and the MiB of this process before, with it, and with look-ups."""
    before = _peak()
    start = CLOCKS[clock]()
    index = ItemIndex.load(folder / PID2SID, SPEC)
    seconds, loaded = CLOCKS[clock]() - start, _peak()
    for row in np.random.default_rng(0).integers(0, len(index.sids), 1000).tolist():
        assert index.pids_of(tuple(index.sids[row].tolist())) == index.pids_at(row)
    print(f"{seconds:.2f} s, {before:.0f} MiB before, {loaded:.0f} with it, {_peak():.0f} with look-ups", flush=True)


def _peak() -> float:
    """MiB of this process' largest resident size (Linux; getrusage would count the parent's, before the exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_numbers(parser, items=(10_000_000, "items"))
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the process's own seconds")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args()
    if args.inside:
        load(args.inside, args.clock)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_catalogue(Path(folder), args.items)
        for when in ("first", "again"):
            print(f"{args.items:,} items, {when}: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--inside", folder], check=True)


if __name__ == "__main__":
    cli(main)()
