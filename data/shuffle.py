"""A global shuffle in bounded memory: rows go to buckets by a hash of seed and uuid, each bucket is sorted by it.

The order is that of the hash, so it depends on the rows and the seed alone: not on the order of the sources, the size
of the buffers or the number of threads. Equal uuids have equal hashes, so a row that comes twice meets its double in
one bucket. Where everything fits into the buffer nothing is written to disk on the way.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.sampling import chunks, uuid_keys
from onerec.files import FILE_LIST, shard_name
from onerec.records import SCHEMA
from onerec.run import Manifest, write_json

_KEY = "__key"
_SPILL_SCHEMA = pa.schema([*((name, pa.large_string()) for name in SCHEMA.names), (_KEY, pa.uint64())])
_MAX_BUCKETS = 512


class Buckets:
    """Rows by ranges of their key, in memory or, where there is more than one bucket, in spill files of ``folder``."""

    def __init__(self, folder: Path, count: int, part_bytes: int) -> None:
        self.count = min(max(count, 1), _MAX_BUCKETS)
        self._folder, self._part_bytes = folder, part_bytes
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0
        self._writers: list[pa.RecordBatchStreamWriter] = []
        if self.count > 1:
            folder.mkdir(parents=True)
            lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writers = [pa.ipc.new_stream(self._path(i), _SPILL_SCHEMA, options=lz4) for i in range(self.count)]

    def _path(self, bucket: int) -> str:
        return str(self._folder / f"{bucket:04d}.arrow")

    def add(self, batch: pa.RecordBatch, keys: np.ndarray) -> None:
        """Add rows with their keys."""
        columns = [*(column.cast(pa.large_string()) for column in batch.columns), pa.array(keys)]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=_SPILL_SCHEMA))
        self._bytes += batch.nbytes
        if self._writers and self._bytes >= self._part_bytes:
            self._spill()

    def _spill(self) -> None:
        table = pa.Table.from_batches(self._waiting, _SPILL_SCHEMA).combine_chunks()
        self._waiting, self._bytes = [], 0
        keys = table[_KEY].to_numpy()
        bucket = (keys >> np.uint64(48)).astype(np.int64) * self.count >> 16
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for i, writer in enumerate(self._writers):
            if len(rows := order[bounds[i] : bounds[i + 1]]):
                writer.write_table(table.take(pa.array(rows)))

    def __iter__(self) -> Iterator[pa.Table]:
        """Each bucket once, whole, in the order of the keys; its spill file goes as it is read."""
        if not self._writers:
            waiting, self._waiting = self._waiting, []
            yield pa.Table.from_batches(waiting, _SPILL_SCHEMA)
            return
        if self._waiting:
            self._spill()
        for writer in self._writers:
            writer.close()
        for i in range(self.count):
            with pa.OSFile(self._path(i)) as file:
                yield pa.ipc.open_stream(file).read_all()
            os.unlink(self._path(i))


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
        self._running.append(self._pool.submit(_write_shard, self._path(len(self.rows)), table))
        self.rows.append(table.num_rows)
        self._wait(self._limit)

    def _wait(self, at_most: int) -> None:
        """Wait until no more than so many shards are still being written."""
        while len(self._running) > at_most:
            self._running.popleft().result()

    def _path(self, index: int) -> Path:
        return self._folder / f"shard-{index:05d}"

    def finish(self) -> None:
        """Write what is left, and the list of all shards."""
        if self._rest is not None:
            self._submit(self._rest)
        self._wait(0)
        names = [shard_name(i, len(self.rows)) for i in range(len(self.rows))]
        for i, name in enumerate(names):
            os.rename(self._path(i), self._folder / name)
        write_json(self._folder / FILE_LIST, names)

    def close(self) -> None:
        """Stop the writers; what waits is not written."""
        self._pool.shutdown(cancel_futures=True)


def _write_shard(path: Path, table: pa.Table) -> None:
    table = pa.Table.from_arrays([column.cast(pa.string()) for column in table.columns], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", use_dictionary=["source"], write_statistics=False)


def shuffle_to_shards(
    batches: Iterable[tuple[str, pa.RecordBatch]],
    folder: Path,
    rows_per_file: int,
    seed: int,
    estimated_bytes: float,
    buffer_bytes: int,
    manifest: Manifest,
    threads: int,
) -> list[int]:
    """Write all rows, shuffled, into the shards of ``folder``; rows of each. Doubles are dropped and counted.

    ``batches`` are (source name, records). About ``buffer_bytes`` of rows are in memory at a time.
    """
    # A bucket is held twice while it is sorted, and a part waits on its way to the spill files.
    buckets = Buckets(folder / ".spill", int(np.ceil(estimated_bytes / (buffer_bytes / 3))), buffer_bytes // 8)
    by_source = manifest.extra.setdefault("rows_by_source", {})
    for name, batch in batches:
        keys, _ = uuid_keys(batch.column("uuid"), seed)
        by_source[name] = by_source.get(name, 0) + batch.num_rows
        if batch.num_rows:
            buckets.add(batch, keys)
    with contextlib.closing(Shards(folder, rows_per_file, threads)) as shards:
        for table in buckets:
            _add_sorted(shards, table, rows_per_file, manifest)
            del table
        shards.finish()
    if (folder / ".spill").exists():
        os.rmdir(folder / ".spill")
    manifest.extra["buckets"] = buckets.count
    return shards.rows


def _add_sorted(shards: Shards, table: pa.Table, rows_per_file: int, manifest: Manifest) -> None:
    keys = table[_KEY].to_numpy()
    order = np.argsort(keys, kind="stable")
    table = table.drop_columns([_KEY])
    double = np.zeros(len(order), bool)
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    if len(same):
        seen: set[str] = set()
        for i in np.union1d(same - 1, same):  # other uuids may have the same key, so the uuid itself tells
            uuid = table["uuid"][order[i]].as_py().lower()
            double[i] = uuid in seen
            seen.add(uuid)
        manifest.drop("uuid stands twice", int(double.sum()))
    order = order[~double]
    batch = table.combine_chunks()
    del table
    for start, end in chunks(len(order), rows_per_file):
        shards.add(batch.take(pa.array(order[start:end])))
