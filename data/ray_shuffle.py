"""The shuffle of `data.shuffle` by tasks: the same shards, byte for byte, whatever the number of nodes.

1. A task a piece of the sources reads, samples and checks its rows and writes them, by bucket, to a spill file.
2. A task a bucket reads its keys and uuids from all spill files and counts its rows without doubles, which says where
   its first row lies among all.
3. A task a bucket reads it, sorts it and writes the shards that lie in it alone. The rows before the first and behind
   the last of these, less than a shard each, go to the command, which writes the shards that lie in several buckets.

All files lie in the output folder, on the file system that the nodes share: records are read once and spilled (lz4),
the spill files are read once and their keys twice. Over the network beside that go the rows of step 3. A task holds
about twice ``buffer_bytes``. A task that is repeated writes the same file again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from data.pieces import Piece
from data.sampling import chunks
from data.shuffle import (
    DOUBLE,
    KEYS,
    NO_ROWS,
    SPILL,
    Buckets,
    Shuffle,
    in_order,
    keyed_batches,
    name_shards,
    read_bucket,
    unnamed,
    write_shard,
)
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


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A bucket of all spill ``files``; ``first``: where its first row lies among all rows, once that is known."""

    shuffle: Shuffle
    files: list[Path]
    number: int
    first: int = 0


def shuffle_on_ray(pieces: Iterable[Piece], shuffle: Shuffle, wanted: int, manifest: Manifest) -> int:
    """Write all rows, shuffled, into the shards of the folder; returns the rows. ``wanted``: rows, for the progress."""
    jobs = ((shuffle, number, piece) for number, piece in enumerate(pieces))
    done = map_in_order(spill_piece, jobs, None, runner=RAY)
    files = list[Path]()
    for spilled in progress(done, "records", wanted, size=lambda spilled: spilled.rows.total()):
        files += spilled.files
        manifest.extra["rows_by_source"].update(spilled.rows)
        manifest.dropped += spilled.dropped
    buckets = [Bucket(shuffle, files, number) for number in range(shuffle.count)]
    counted = list(map_in_order(count_bucket, progress(buckets, "count", unit="bucket"), None, runner=RAY))
    manifest.drop(DOUBLE, sum(doubles for _, doubles in counted))
    firsts = itertools.accumulate((rows for rows, _ in counted), initial=0)
    placed = [dataclasses.replace(bucket, first=first) for bucket, first in zip(buckets, firsts, strict=False)]
    written = map_in_order(write_bucket, progress(placed, "shards", unit="bucket"), None, runner=RAY)
    rest = NO_ROWS
    for bucket, (head, tail) in zip(placed, written, strict=True):
        rest = pa.concat_tables([rest, head])
        if rest.num_rows == shuffle.rows_per_file:
            write_shard(unnamed(shuffle.folder, bucket.first // shuffle.rows_per_file), rest)
            rest = NO_ROWS
        rest = pa.concat_tables([rest, tail])
    rows = sum(rows for rows, _ in counted)
    if rest.num_rows:
        write_shard(unnamed(shuffle.folder, rows // shuffle.rows_per_file), rest)
    name_shards(shuffle.folder, -(-rows // shuffle.rows_per_file))
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


def count_bucket(bucket: Bucket) -> tuple[int, int]:
    """Step 2: (rows, doubles beside them)."""
    order, doubles = in_order(read_bucket(bucket.files, bucket.number, KEYS))
    return len(order), doubles


def write_bucket(bucket: Bucket) -> tuple[pa.Table, pa.Table]:
    """Step 3: (rows that end a shard of the bucket before, rows that begin one of the bucket behind)."""
    shuffle, table = bucket.shuffle, read_bucket(bucket.files, bucket.number)
    order, _ = in_order(table)
    batch = table.drop_columns([KEYS[1]]).combine_chunks()
    del table
    size = shuffle.rows_per_file
    head = min(-bucket.first % size, len(order))
    tail = head + (len(order) - head) // size * size
    for start, end in chunks(tail - head, size):
        name = unnamed(shuffle.folder, (bucket.first + head + start) // size)
        with atomic_path(shuffle.folder / SPILL / name.name) as path:
            write_shard(path, batch.take(pa.array(order[head + start : head + end])))
        os.replace(shuffle.folder / SPILL / name.name, name)
    first, last = (batch.take(pa.array(part)) for part in (order[:head], order[tail:]))
    return first, last
