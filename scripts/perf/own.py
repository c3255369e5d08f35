"""Time and memory of the data steps of one's own catalogue: from a log of events to the mixes.

    python scripts/perf/own.py                                    # 10,000,000 events of 100,000 users, Parquet
    python scripts/perf/own.py --form csv --events 1000000 --users 10000

Ids are text, items have titles; users take popular items more often, 100 on the average. The steps are the numbered
scripts of scripts/my_catalogue.sh with what scripts/sizes.py says; SIDs are drawn, as the tokenizer is not measured
here. Memory is that of the largest process.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, Used, add_numbers, print_heads, print_row, used

from onerec.cli import cli
from onerec.sid import SidSpec

SPEC = SidSpec((2048, 2048))
BLOCK = 1_000_000  # events of a written batch


def blocks(events: int, users: int, items: int) -> Iterator[pa.Table]:
    """Events in the order of time."""
    rng = np.random.default_rng(0)
    share = rng.lognormal(0, 1, users)
    edges = np.cumsum(share / share.sum())
    for first in range(0, events, BLOCK):
        n = min(BLOCK, events - first)
        user = np.minimum(np.searchsorted(edges, rng.random(n)), users - 1)
        item = (items * rng.random(n) ** 2).astype(np.int64)
        columns = {"user_id": names("user", user), "item_id": names("B", item)}
        yield pa.table({**columns, "timestamp": 1_700_000_000 + np.arange(first, first + n)})


def names(prefix: str, numbers: np.ndarray) -> pa.Array:
    """Text ids, ten letters long."""
    digits = 10 - len(prefix)
    return pa.array(np.char.add(prefix, np.char.zfill(numbers.astype(f"U{digits}"), digits)), pa.string())


def write_tables(folder: Path, events: int, users: int, items: int, form: str) -> None:
    """items.parquet, and the events in ``form``."""
    every = np.arange(items)
    titles = pa.array([f"thing {i % 977} of kind {i % 89}" for i in range(items)])
    pq.write_table(pa.table({"item_id": names("B", every), "title": titles}), folder / "items.parquet")
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())])
    write = pq.ParquetWriter if form == "parquet" else pa.csv.CSVWriter
    with write(folder / f"events.{form}", schema) as writer:
        for block in blocks(events, users, items):
            writer.write_table(block)


def draw_sids(folder: Path, items: int) -> None:
    """A SID of its own for every item, and the spec."""
    places = np.random.default_rng(0).choice(np.prod(SPEC.codebook_sizes), items, replace=False)
    codes = np.stack(np.unravel_index(places, SPEC.codebook_sizes), 1).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(np.arange(items + 1, dtype=np.int32) * SPEC.n_layers), codes.ravel())
    pq.write_table(pa.table({"pid": np.arange(1, items + 1), "codes": lists}), folder / "video_ad_pid2sid.parquet")
    SPEC.save(folder)


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_numbers(parser, events=(10_000_000, "events"), users=(100_000, "users"), items=(50_000, "items"))
    parser.add_argument("--form", choices=("parquet", "csv"), default="parquet", help="of the log")
    parser.add_argument("--work_dir", type=Path, help="folder for the files; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work_dir) as name:
        folder = Path(name)
        write_tables(folder, args.events, args.users, args.items, args.form)
        variables = {"OWN_ITEMS": "items.parquet", "OWN_LOGS": f"events.{args.form}"}
        variables = {key: str(folder / value) for key, value in variables.items()} | {"PROFILE": "own"}
        variables |= {"RUN_DIR": str(folder / "run")}
        data = folder / "run" / "raw_data" / "onerec_data"
        counted = [str(ROOT / "data/cooccurrence.py"), "--input", str(data / "onerec_bench_release.parquet")]
        steps = {
            "01_world.sh": ["bash", str(ROOT / "scripts/01_world.sh")],
            "data/cooccurrence.py": [
                sys.executable,
                *counted,
                "--output_path",
                str(data / "item_cooccurrence.parquet"),
            ],
            "03_data.sh": ["bash", str(ROOT / "scripts/03_data.sh")],
        }
        print(f"{args.events:,} events of {args.users:,} users and {args.items:,} items, {args.form}")
        print_heads("step", "seconds", "processor seconds", "GiB")
        every: list[Used] = []
        for step, command in steps.items():
            every.append(used(command, **variables))
            show(step, every[-1])
            if step == "01_world.sh":
                draw_sids(data, args.items)
        show("all", Used(sum(u.seconds for u in every), sum(u.processor for u in every), max(u.gib for u in every)))


def show(step: str, of: Used) -> None:
    print_row(step, f"{of.seconds:.0f}", f"{of.processor:.0f}", f"{of.gib:.2f}")


if __name__ == "__main__":
    cli(main)()
