"""Reading the users and the captions: checked columns, bounded batches, doubles left out and counted."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.onerec_data.batch import Batch
from data.onerec_data.build import Built
from data.onerec_data.layout import PARTS, WANTED, Layout
from data.onerec_data.text import MARK
from onerec.errors import InputError
from onerec.parquet import Kind, column_types, count_rows, integers, iter_batches, list_parquet, read_table
from onerec.run import Manifest

USERS_PER_BATCH, ITEMS_PER_BATCH = 512, 4096


def available_parts(path: Path, layout: Layout) -> set[str]:
    """The parts that the users' table has a column for."""
    names = set().union(*map(column_types, list_parquet(path)))
    return {part for part in PARTS if layout.column(part) in names}


class Users:
    """The users' table (a file, a folder or a pattern) as batches; doubles and null uids are left out and counted."""

    def __init__(self, path: Path, required: Sequence[str], optional: Sequence[str], layout: Layout) -> None:
        """``required`` and ``optional`` are parts; raises `InputError` where a required column is missing or no use."""
        self.path, self._layout, self._files = path, layout, list_parquet(path)
        self.rows_by_file = {file: count_rows(file) for file in self._files}
        self.rows = sum(self.rows_by_file.values())
        if self.rows == 0:
            raise InputError(path, "is an empty table", "give at least one user")
        required, optional = ["uid", *required], ["split", "window", *layout.key, *optional]
        self._required = [*dict.fromkeys(map(layout.column, required))]
        self._optional = [c for c in dict.fromkeys(map(layout.column, optional)) if c not in self._required]
        self._check_columns(dict.fromkeys([*required, *optional]))
        self.counts: Counter[str] = Counter()

    def _check_columns(self, parts: Iterable[str]) -> None:
        """Raise `InputError` where a file lacks a column that it must have, or has one of a type of no use."""
        types = {file: column_types(file) for file, rows in self.rows_by_file.items() if rows}
        every = set().union(*types.values())
        for (file, known), part in itertools.product(types.items(), parts):
            column = self._layout.column(part)
            if column in known:
                self._check_type(file, column, part, known[column])
            elif folder := next((f for f in file.parent.parts if f.startswith(f"{column}=")), None):
                raise InputError(file, f"says {folder} in its folder's name alone", f"a column {column} in the file")
            elif column in every:
                raise InputError(file, f"has no column {column}, which others have", "the same columns in all files")
            elif column in self._required:
                raise InputError(file, f"has no column {column}", f"it has {', '.join(known)}")

    def _check_type(self, file: Path, column: str, part: str, kind: pa.DataType) -> None:
        try:
            Batch(pa.record_batch({column: pa.nulls(0, kind)}), self._layout).read(part)
        except TypeError:
            raise InputError(file, f"column {column} is {kind}", f"{WANTED[PARTS[part]]} wanted") from None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        seen: set[str] = set()
        for file in filter(self.rows_by_file.get, self._files):
            for data in iter_batches(file, self._required, self._optional, USERS_PER_BATCH):
                batch = Batch(data, self._layout)
                keep = [self._new(batch, row, seen) for row in range(batch.n)]
                yield data if all(keep) else data.filter(pa.array(keep))

    def _new(self, batch: Batch, row: int, seen: set[str]) -> bool:
        key = repr(batch.keys[row])  # the key itself: hashes of other keys may be the same
        reason = batch.unusable(row)
        if reason is None and key in seen:
            double = self._layout.key[:2] == ("uid", "split") and len(self._layout.key) < 4
            reason = "uid stands twice in a split" if double else "uid and the row stand twice"
        if reason:
            self.counts[f"users: {reason}"] += 1
            return False
        seen.add(key)
        return True

    def note(self, manifest: Manifest, built: Built, max_bad_ratio: float) -> None:
        """Count what was left out; raises `InputError` where too many rows, or pids of a column, are bad."""
        for reason, count in sorted((self.counts + built.counts).items()):
            manifest.drop(reason, count)
        manifest.inputs |= {str(file): rows for file, rows in self.rows_by_file.items()}
        manifest.check_bad_ratio(self.path, self.counts.total() + built.bad_rows, self.rows, max_bad_ratio)
        for column, count in built.values_bad.items():
            if count > max_bad_ratio * built.values_read[column]:
                what = f"column {column}: {count:,} of {built.values_read[column]:,} values are not pids"
                right = "whole numbers; give the items numbers of their own (data/README.md)"
                raise InputError(self.path, what, right)


class Captions:
    """The captions' table as batches of (pids, captions); blank captions and pids that come again are counted."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self._pid, self._caption = layout.item_columns("captions", ("pid", "caption"), path)
        self.rows = count_rows(path)
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[list[int], list[str]]]:
        pids, known, _ = integers(read_table(self.path, {self._pid: Kind.INT})[self._pid])
        first = np.zeros(len(pids), bool)
        first[np.flatnonzero(known)[np.unique(pids[known], return_index=True)[1]]] = True
        start = given = 0
        kinds = {self._pid: Kind.INT, self._caption: Kind.TEXT}
        for data in iter_batches(self.path, kinds, batch_size=ITEMS_PER_BATCH):
            kept: list[tuple[int, str]] = []
            columns = (data.column(0).to_pylist(), data.column(1).to_pylist())
            for at, (pid, text) in enumerate(zip(*columns, strict=True), start):
                if pid is None or not (text := (text or "").strip()):
                    self.counts["captions: pid or caption is empty"] += 1
                elif MARK.search(text):
                    self.counts["captions: holds a mark of chats or items"] += 1
                elif not first[at]:
                    self.counts["captions: pid stands twice"] += 1
                else:
                    kept.append((pid, text))
            start, given = start + data.num_rows, given + len(kept)
            yield [pid for pid, _ in kept], [text for _, text in kept]
        if not given:
            raise InputError(self.path, "has no caption that can be used", f"text in its column {self._caption}")
