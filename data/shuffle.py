"""A global shuffle in bounded memory: rows go to buckets by a hash of seed and uuid, each bucket is sorted by it.

The order is that of the hash, so it depends on the rows and the seed alone: not on the order of the sources, the size
of the buffers or the number of threads. Equal uuids have equal hashes, so a row that comes twice meets its double in
one bucket. Where everything fits into the buffer nothing is written to disk on the way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.pieces import Piece
from data.sampling import chunks, uuid_keys
from onerec.errors import InputError
from onerec.files import FILE_LIST, shard_name
from onerec.folders import atomic_path
from onerec.records import SCHEMA
from onerec.run import Manifest, progress, write_json

SPILL = ".spill"
DOUBLE = "uuid stands twice"
KEYS = ("uuid", "__key")
_KEY = KEYS[1]
_SPILL_SCHEMA = pa.schema([*((name, pa.large_string()) for name in SCHEMA.names), (_KEY, pa.uint64())])
_MAX_BUCKETS = 4096
_PART_BYTES = 1 << 28  # text of a column in one array of a shard; `string` holds 2^31 bytes, a few long rows included


class Buckets:
    """Rows by ranges of their key, in memory or, where there is more than one bucket, in spill files of ``folder``.

    A spill file, ``<name>-00000.arrow``, holds ``part_bytes`` of rows, a record batch a bucket.
    """

    def __init__(self, folder: Path, count: int, part_bytes: int, name: str = "part", in_memory: bool = True) -> None:
        self.count, self.files = count, list[Path]()
        self._folder, self._part_bytes, self._name = folder, part_bytes, name
        self._in_memory = in_memory and count == 1
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batch: pa.RecordBatch, keys: np.ndarray) -> None:
        """Add rows with their keys."""
        columns = [*(column.cast(pa.large_string()) for column in batch.columns), pa.array(keys)]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=_SPILL_SCHEMA))
        self._bytes += batch.nbytes
        if not self._in_memory and self._bytes >= self._part_bytes:
            self.spill()

    def spill(self) -> None:
        """Write what waits; the file has its name when it is whole."""
        if not self._waiting:
            return
        rows = pa.Table.from_batches(self._waiting, _SPILL_SCHEMA).combine_chunks().to_batches()[0]
        self._waiting, self._bytes = [], 0
        keys = rows.column(_KEY).to_numpy()
        bucket = (keys >> np.uint64(48)).astype(np.int64) * self.count >> 16
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1))
        self.files.append(self._folder / f"{self._name}-{len(self.files):05d}.arrow")
        parts = (rows.take(pa.array(order[start:end])) for start, end in itertools.pairwise(bounds))
        write_rows(self.files[-1], _SPILL_SCHEMA, parts)

    def __iter__(self) -> Iterator[pa.Table]:
        """Each bucket once, whole, in the order of the keys."""
        if self._in_memory:
            waiting, self._waiting = self._waiting, []
            yield pa.Table.from_batches(waiting, _SPILL_SCHEMA)
            return
        self.spill()
        for bucket in range(self.count):
            yield read_bucket(self.files, bucket)


def write_rows(path: Path, schema: pa.Schema, parts: Iterable[pa.RecordBatch | pa.Table]) -> None:
    """Write a file of rows on their way to the shards, a part a record batch."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), schema, options=options) as file:
        for part in parts:
            file.write(part)


def read_bucket(files: Sequence[Path], bucket: int, columns: Sequence[str] = ()) -> pa.Table:
    """A bucket's rows, in the order of the spill files, with its keys; all columns where none is named."""
    names = _SPILL_SCHEMA.names
    options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns] or None)
    batches = []
    for path in files:
        with pa.OSFile(str(path)) as file:
            batches.append(pa.ipc.open_file(file, options=options).get_batch(bucket))
    return pa.Table.from_batches(batches, None if batches else _SPILL_SCHEMA)


class Shards:
    """``part-00000-of-000NN.parquet`` files of ``rows_per_file`` rows, written in the background, named at the end."""

    def __init__(self, folder: Path, rows_per_file: int, threads: int) -> None:
        self.rows: list[int] = []
        self._folder, self._rows_per_file = folder, rows_per_file
        self._pool = ThreadPoolExecutor(threads, "shards")
        self._limit = 2 * threads
        self._running: deque[Future[None]] = deque()
        self._rest: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        """Append rows."""
        table = pa.concat_tables([self._rest, table]) if self._rest is not None else table
        whole = table.num_rows - table.num_rows % self._rows_per_file
        for start, end in chunks(whole, self._rows_per_file):
            self._submit(table.slice(start, end - start))
        # A copy, so that the rest does not keep the whole bucket in memory.
        self._rest = table.slice(whole).combine_chunks() if whole < table.num_rows else None

    def _submit(self, table: pa.Table) -> None:
        self._running.append(self._pool.submit(write_shard, unnamed(self._folder, len(self.rows)), table))
        self.rows.append(table.num_rows)
        self._wait(self._limit)

    def _wait(self, at_most: int) -> None:
        """Wait until no more than so many shards are still being written."""
        while len(self._running) > at_most:
            self._running.popleft().result()

    def finish(self) -> None:
        """Write what is left, and the list of all shards."""
        if self._rest is not None:
            self._submit(self._rest)
        self._wait(0)
        name_shards(self._folder, len(self.rows))

    def close(self) -> None:
        """Stop the writers; what waits is not written."""
        self._pool.shutdown(cancel_futures=True)


def unnamed(folder: Path, index: int) -> Path:
    """Where a shard lies while it is not known how many there are."""
    return folder / f"shard-{index:05d}"


def name_shards(folder: Path, count: int) -> None:
    """Give the shards their names, and list them."""
    for i in range(count):
        os.rename(unnamed(folder, i), folder / shard_name(i, count))
    list_shards(folder, count)


def list_shards(folder: Path, count: int) -> None:
    """Write the list of the shards."""
    write_json(folder / FILE_LIST, [shard_name(i, count) for i in range(count)])


def write_shard(path: str | Path, table: pa.Table) -> None:
    """Write a shard; its bytes depend on its rows alone, not on how they lie in memory."""
    size = max(pc.sum(pc.binary_length(column)).as_py() or 0 for column in table.columns)
    rows = -(-table.num_rows // -(-max(size, 1) // _PART_BYTES))
    parts = [table.slice(start, end - start).combine_chunks() for start, end in chunks(table.num_rows, rows)]
    options = {"compression": "zstd", "use_dictionary": ["source"], "write_statistics": False}
    pq.write_table(pa.concat_tables(part.cast(SCHEMA) for part in parts), path, **options)


def bucket_count(estimated_bytes: float, buffer_bytes: int) -> int:
    """Buckets of which one can be held twice, while it is sorted, beside a part on its way to the spill files.

    Raises `InputError` where they would be more than a spill file has room for, and a bucket larger than the buffer.
    """
    if estimated_bytes > _MAX_BUCKETS * buffer_bytes:
        room = f"{_MAX_BUCKETS} buckets of {buffer_bytes >> 20} MB"
        what = f"{estimated_bytes / 1e12:.1f} TB of records do not fit {room}"
        raise InputError("--buffer_mb", what, f"at least {int(estimated_bytes / _MAX_BUCKETS / 2**20) + 1}")
    return int(min(max(np.ceil(estimated_bytes / (buffer_bytes / 3)), 1), _MAX_BUCKETS))


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """A shuffle into the shards of ``folder`` by ``count`` buckets (`bucket_count`), of ``buffer_bytes`` at a time."""

    folder: Path
    rows_per_file: int
    seed: int
    count: int
    buffer_bytes: int


def shuffle_to_shards(pieces: Iterable[Piece], shuffle: Shuffle, wanted: int, manifest: Manifest, threads: int) -> int:
    """Write all rows, shuffled, into the shards; returns the rows. Doubles are dropped and counted.

    ``wanted``: rows of the pieces, for the progress.
    """
    buckets = Buckets(shuffle.folder / SPILL, shuffle.count, shuffle.buffer_bytes // 8)
    batches = (pair for piece in pieces for pair in keyed_batches(piece, shuffle.seed, manifest))
    for batch, keys in progress(batches, "records", wanted, size=lambda pair: pair[0].num_rows):
        buckets.add(batch, keys)
    with contextlib.closing(Shards(shuffle.folder, shuffle.rows_per_file, threads)) as shards:
        for table in buckets:
            order, doubles = in_order(table)
            manifest.drop(DOUBLE, doubles)
            batch = table.drop_columns([_KEY]).combine_chunks()
            del table
            for start, end in chunks(len(order), shuffle.rows_per_file):
                shards.add(batch.take(pa.array(order[start:end])))
            del batch
        shards.finish()
    return sum(shards.rows)


def keyed_batches(piece: Piece, seed: int, manifest: Manifest) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """The rows of a piece that keep the rules of the format, with their keys; the manifest counts them by source."""
    for batch in piece.read(manifest):
        manifest.extra["rows_by_source"][piece.source] += batch.num_rows
        if batch.num_rows:
            yield batch, uuid_keys(batch.column("uuid"), seed)[0]


def in_order(table: pa.Table) -> tuple[np.ndarray, int]:
    """(a bucket's rows in the order of their keys, without doubles; how many these are)."""
    keys = table[_KEY].to_numpy()
    order = np.argsort(keys, kind="stable")
    double = np.zeros(len(order), bool)
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    if len(same):
        seen: set[str] = set()
        for i in np.union1d(same - 1, same):  # other uuids may have the same key, so the uuid itself tells
            text = table["uuid"][order[i]].as_py().lower()
            double[i] = text in seen
            seen.add(text)
    return order[~double], int(double.sum())
