"""The open Parquet files of a run: written in the background, renamed to their names together when it ends well."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onerec.folders import atomic_path, together

_ROWS_PER_GROUP = 4096
_BYTES_PER_GROUP = 8 << 20
_MAX_WAITING = 8  # tables between the builders and the disk, a thread


class Outputs:
    """Parquet files by path. ``add`` hands a table over; compression and writing happen beside the builders.

    A row group ends with the table that fills it (4,096 rows, or 8 MB), so the bytes depend on the tables alone and not
    on threads or workers. A file of ``optional`` that got no row is not made.
    """

    def __init__(self, schemas: Mapping[Path, pa.Schema], optional: Collection[Path] = (), threads: int = 1) -> None:
        self.rows = dict.fromkeys(schemas, 0)
        self._schemas, self._optional = dict(schemas), optional
        self._stack = contextlib.ExitStack()
        # A file belongs to one thread, so its rows keep their order.
        self._pools = [ThreadPoolExecutor(1, "parquet") for _ in range(threads)]
        self._pool_of = {path: self._pools[i % threads] for i, path in enumerate(schemas)}
        self._waiting: deque[Future[None]] = deque()
        self._buffers: dict[Path, list[pa.Table]] = {path: [] for path in schemas}
        self._writers: dict[Path, pq.ParquetWriter] = {}

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if kind is None:
                self._finish()
        except BaseException as problem:
            self._close(type(problem), problem, problem.__traceback__)
            raise
        self._close(kind, error, trace)

    def _close(self, *error: Any) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        with together():
            self._stack.__exit__(*error)

    def add(self, path: Path, table: pa.Table) -> None:
        """Append rows to a file; waits where the disk is far behind."""
        if table.num_rows:
            self.rows[path] += table.num_rows
            self._waiting.append(self._pool_of[path].submit(self._write, path, table))
        self._wait(_MAX_WAITING * len(self._pools))

    def _wait(self, at_most: int) -> None:
        while len(self._waiting) > at_most:
            self._waiting.popleft().result()

    def made(self) -> dict[str, int]:
        """Rows by file, of the files that are made."""
        return {str(path): rows for path, rows in self.rows.items() if rows or path not in self._optional}

    def _finish(self) -> None:
        self._wait(0)
        for path in self._schemas:
            if self._buffers[path]:
                self._flush(path)
            elif path not in self._writers and path not in self._optional:
                self._writer(path)

    def _write(self, path: Path, table: pa.Table) -> None:
        buffer = self._buffers[path]
        buffer.append(table)
        if sum(t.num_rows for t in buffer) >= _ROWS_PER_GROUP or sum(t.nbytes for t in buffer) >= _BYTES_PER_GROUP:
            self._flush(path)

    def _flush(self, path: Path) -> None:
        table = pa.concat_tables(self._buffers[path])
        self._writer(path).write_table(table, row_group_size=table.num_rows)
        self._buffers[path].clear()

    def _writer(self, path: Path) -> pq.ParquetWriter:
        if path not in self._writers:
            temporary = self._stack.enter_context(atomic_path(path))
            options = {"compression": "zstd", "use_dictionary": ["source", "task"], "write_statistics": False}
            writer = pq.ParquetWriter(temporary, self._schemas[path], **options)
            self._writers[path] = self._stack.enter_context(writer)
        return self._writers[path]
