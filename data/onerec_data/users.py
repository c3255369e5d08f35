"""Reading the users and the captions: checked columns, bounded batches, doubles left out and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from data.onerec_data.batch import Batch
from data.onerec_data.layout import PARTS, Layout, check_type
from onerec.errors import InputError
from onerec.parquet import count_rows, iter_batches, list_parquet, open_parquet, read_table

USERS_PER_BATCH, ITEMS_PER_BATCH = 512, 4096


def available_parts(path: Path, layout: Layout) -> set[str]:
    """The parts that the users' table has a column for."""
    names = open_parquet(list_parquet(path)[0]).schema_arrow.names
    return {part for part in PARTS if layout.column(part) in names}


class Users:
    """The users' table (a file, a folder or a pattern) as batches; doubles and null uids are left out and counted."""

    def __init__(self, path: Path, required: Sequence[str], optional: Sequence[str], layout: Layout) -> None:
        """``required`` and ``optional`` are parts; raises `InputError` where a required column is missing or of no use."""
        self.path, self._layout, self._files = path, layout, list_parquet(path)
        self.rows_by_file = {file: count_rows(file) for file in self._files}
        self.rows = sum(self.rows_by_file.values())
        if self.rows == 0:
            raise InputError(path, "is an empty table", "give at least one user")
        parts = dict.fromkeys(["uid", *required, "split", "window", *layout.key, *optional])
        self._required = [layout.column(part) for part in dict.fromkeys(["uid", *required])]
        others = dict.fromkeys(layout.column(part) for part in parts)
        self._optional = [column for column in others if column not in self._required]
        for file in self._files:
            schema = open_parquet(file, self._required).schema_arrow
            for part in parts:
                if (column := layout.column(part)) in schema.names:
                    check_type(file, column, part, schema.field(column).type)
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        seen: set[int] = set()
        for file in self._files:
            for data in iter_batches(file, self._required, self._optional, USERS_PER_BATCH):
                batch = Batch(data, self._layout)
                keep = [self._new(uid, key, seen) for uid, key in zip(batch.uid, batch.keys, strict=True)]
                yield data if all(keep) else data.filter(pa.array(keep))

    def _new(self, uid: int | None, key: tuple[object, ...], seen: set[int]) -> bool:
        if uid is None or hash(key) in seen:
            double = (
                "stands twice in a split"
                if self._layout.key[:2] == ("uid", "split") and len(self._layout.key) < 4
                else "and the row stand twice"
            )
            self.counts["users: uid is null" if uid is None else f"users: uid {double}"] += 1
            return False
        seen.add(hash(key))
        return True


class Captions:
    """The captions' table as batches of (pids, captions); blank captions and pids that come again are left out, counted."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        names = open_parquet(path).schema_arrow.names
        columns = [layout.item_column("captions", part, names) for part in ("pid", "caption")]
        for column, part in zip(columns, ("pid", "caption"), strict=True):
            if column is None:
                wanted = " or ".join(layout.captions.get(part, (part,)))
                raise InputError(path, f"has no column {wanted}", f"it has {', '.join(names)}")
        self._pid, self._caption = columns
        kind = open_parquet(path).schema_arrow.field(self._pid).type
        if not pa.types.is_integer(kind):
            raise InputError(path, f"column {self._pid} is {kind}", "integers are wanted")
        self.rows = count_rows(path)
        self.counts: Counter[str] = Counter()

    def __iter__(self) -> Iterator[tuple[list[int], list[str]]]:
        pids = read_table(self.path, [self._pid])[self._pid].to_pandas()
        double = pids.duplicated().to_numpy()
        start = 0
        for data in iter_batches(self.path, [self._pid, self._caption], batch_size=ITEMS_PER_BATCH):
            kept: list[tuple[int, str]] = []
            columns = (data.column(0).to_pylist(), data.column(1).to_pylist())
            for at, (pid, text) in enumerate(zip(*columns, strict=True), start):
                if pid is None or not isinstance(text, str) or not text.strip():
                    self.counts["captions: pid or caption is empty"] += 1
                elif double[at]:
                    self.counts["captions: pid stands twice"] += 1
                else:
                    kept.append((pid, text.strip()))
            start += data.num_rows
            yield [pid for pid, _ in kept], [text for _, text in kept]


def value_problem(read: Counter[str], bad: Counter[str], path: Path, max_bad_ratio: float) -> None:
    """Raise `InputError` where too many values of a pid column are not pids."""
    for column, count in bad.items():
        if count > max_bad_ratio * read[column]:
            raise InputError(
                path,
                f"column {column}: {count:,} of {read[column]:,} values are not pids",
                "whole numbers; give the items numbers of their own (data/README.md)",
            )
