"""The shuffle of `data.shuffle` by tasks: the same shards, byte for byte, whatever the number of nodes.

1. A task a piece of the sources reads, samples and checks its rows and writes them, by bucket, to a spill file.
2. A task a bucket reads its keys and uuids from all spill files and counts its rows without doubles, which says where
   its first row lies among all.
3. A task a bucket reads it, sorts it and writes the shards that lie in it alone, and, as files beside the spill files,
   the rows before the first and behind the last of these, less than a shard each.
4. A task a shard that lies in several buckets writes it from these.

All files lie in the output folder, on the file system that the nodes share: records are read once and spilled (lz4),
the spill files are read once and their keys twice. A task holds about twice ``buffer_bytes``; what goes to it and comes
from it, through Ray, are numbers, names, and which rows of a piece are taken. A task that is repeated writes the same
file again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.pieces import Piece
from data.sampling import chunks
from data.shuffle import (
    DOUBLE,
    KEYS,
    SPILL,
    Buckets,
    Shuffle,
    in_order,
    keyed_batches,
    list_shards,
    read_bucket,
    write_rows,
    write_shard,
)
from onerec.files import shard_name
from onerec.flags import RAY
from onerec.folders import atomic_path
from onerec.run import Manifest, progress
from onerec.workers import map_in_order


@dataclasses.dataclass(frozen=True)
class Spilled:
    """What became of a piece: its spill files, its rows by source, and bad rows by reason."""

    files: list[Path]
    rows: Counter[str]
    dropped: Counter[str]


# Of the process of a task of steps 2 to 4: the shuffle, all spill files, which may be tens of thousands, and how many
# shards there are, once that is known.
_state: tuple[Shuffle, list[Path], int] | None = None


def begin(shuffle: Shuffle, files: list[Path], shards: int = 0) -> None:
    """Tell the process of tasks of steps 2 to 4 what they all share."""
    global _state
    _state = shuffle, files, shards


def shuffle_on_ray(pieces: Iterable[Piece], shuffle: Shuffle, wanted: int, manifest: Manifest) -> int:
    """Write all rows, shuffled, into the shards of the folder; returns the rows. ``wanted``: rows, for the progress."""
    jobs = ((shuffle, number, piece) for number, piece in enumerate(pieces))
    done = map_in_order(spill_piece, jobs, None, runner=RAY)
    files = list[Path]()
    for spilled in progress(done, "records", wanted, size=lambda spilled: spilled.rows.total()):
        files += spilled.files
        manifest.extra["rows_by_source"].update(spilled.rows)
        manifest.dropped += spilled.dropped

    def tasks(function: Callable[[Any], Any], jobs: Iterable[Any], label: str, shards: int = 0) -> list[Any]:
        jobs = progress(jobs, label, unit="shard" if function is join_shard else "bucket")
        return list(map_in_order(function, jobs, None, begin, (shuffle, files, shards), RAY))

    counted = tasks(count_bucket, range(shuffle.count), "count")
    manifest.drop(DOUBLE, sum(doubles for _, doubles in counted))
    placed, rows = place_buckets([rows for rows, _ in counted])
    shards = -(-rows // shuffle.rows_per_file)
    tasks(write_bucket, placed, "shards", shards)
    tasks(join_shard, shards_to_join(placed, rows, shuffle.rows_per_file), "join", shards)
    list_shards(shuffle.folder, shards)
    return rows


def spill_piece(job: tuple[Shuffle, int, Piece]) -> Spilled:
    """Step 1."""
    shuffle, number, piece = job
    part = shuffle.buffer_bytes // 2
    buckets = Buckets(shuffle.folder / SPILL, shuffle.count, part, f"piece-{number:06d}", in_memory=False)
    noted = Manifest("prepare_mix")
    noted.extra["rows_by_source"] = Counter({piece.source: 0})
    for batch, keys in keyed_batches(piece, shuffle.seed, noted):
        buckets.add(batch, keys)
    buckets.spill()
    return Spilled(buckets.files, noted.extra["rows_by_source"], noted.dropped)


def count_bucket(number: int) -> tuple[int, int]:
    """Step 2: (rows of a bucket, doubles beside them)."""
    order, doubles = in_order(read_bucket(_state[1], number, KEYS))
    return len(order), doubles


def place_buckets(rows: Sequence[int]) -> tuple[list[tuple[int, int]], int]:
    """((bucket, where its first row lies among all rows) of all of them, rows in all)."""
    firsts = list(itertools.accumulate(rows, initial=0))
    return list(enumerate(firsts[:-1])), firsts[-1]


def whole_shards(first: int, rows: int, size: int) -> tuple[int, int]:
    """Of a bucket's rows the first and the one behind the last that lie in shards of that bucket alone."""
    head = min(-first % size, rows)
    return head, head + (rows - head) // size * size


def shards_to_join(placed: Sequence[tuple[int, int]], rows: int, size: int) -> list[tuple[int, list[str]]]:
    """(shard, the files of its rows in order) of the shards that lie in several buckets, and of the last one."""
    found: dict[int, list[str]] = {}
    ends = [first for _, first in placed[1:]] + [rows]
    for (number, first), end in zip(placed, ends, strict=True):
        head, tail = whole_shards(first, end - first, size)
        if head:
            found.setdefault(first // size, []).append(_end_name("head", number))
        if tail < end - first:
            found.setdefault((first + tail) // size, []).append(_end_name("tail", number))
    return list(found.items())


def _end_name(end: str, number: int) -> str:
    return f"{end}-{number:05d}.arrow"


def write_bucket(bucket: tuple[int, int]) -> None:
    """Step 3. ``bucket``: its number, and where its first row lies among all rows."""
    (number, first), (shuffle, files, _) = bucket, _state
    table = read_bucket(files, number)
    order, _ = in_order(table)
    batch = table.drop_columns([KEYS[1]]).combine_chunks()
    del table
    size = shuffle.rows_per_file
    head, tail = whole_shards(first, len(order), size)
    for start, end in chunks(tail - head, size):
        rows = order[head + start : head + end]
        _put((first + head + start) // size, batch.take(pa.array(rows)))
    for name, part in (("head", order[:head]), ("tail", order[tail:])):
        if len(part):
            write_rows(shuffle.folder / SPILL / _end_name(name, number), batch.schema, [batch.take(pa.array(part))])


def join_shard(job: tuple[int, list[str]]) -> None:
    """Step 4."""
    index, names = job
    _put(index, pa.concat_tables(_rows_of(_state[0].folder / SPILL / name) for name in names))


def _rows_of(path: Path) -> pa.Table:
    with pa.OSFile(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _put(index: int, table: pa.Table) -> None:
    """Write a shard; what a task that dies leaves of it lies beside the spill files, which are removed."""
    shuffle, _, shards = _state
    name = shard_name(index, shards)
    with atomic_path(shuffle.folder / SPILL / name) as path:
        write_shard(path, table)
    os.replace(shuffle.folder / SPILL / name, shuffle.folder / name)
