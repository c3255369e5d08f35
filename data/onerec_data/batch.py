"""A batch of users as flat arrays: list columns by offsets, SID texts for whole columns at once.

Histories are hundreds of items long and every task reads them, so what is done per item happens in NumPy and Arrow, and
the tasks' Python runs once a user.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from data.onerec_data.layout import PARTS, Layout
from data.onerec_data.tables import NO_PID, SidTable
from data.onerec_data.text import CHAT_MARK, MARK
from onerec.parquet import Kind, converted, integers, is_list, list_parts, plain, texts

TRAIN_SPLIT, TEST_SPLIT = 0, 1
SPLITS = (TRAIN_SPLIT, TEST_SPLIT, 2)  # 2: validation
_WITH_SIDS = ("inter_user_profile_with_sid", "reco_cot")  # texts in which items may stand as SIDs


@dataclasses.dataclass(frozen=True)
class Lists:
    """A list column: row i holds ``values[offsets[i]:offsets[i + 1]]`` (int64); ``null[i]``: the row has no list."""

    values: np.ndarray
    offsets: np.ndarray
    null: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Items by row."""
        return np.diff(self.offsets)

    def row(self, row: int) -> np.ndarray:
        """The items of one row."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]


@dataclasses.dataclass(frozen=True)
class SidLists:
    """Items with a SID, by row: the SID texts joined, how many pids had no SID, and the pids."""

    text: list[bytes]
    missing: list[int]
    _pids: np.ndarray
    _offsets: np.ndarray

    def pids(self, row: int) -> np.ndarray:
        """The pids behind ``text[row]``, int64, in order."""
        return self._pids[self._offsets[row] : self._offsets[row + 1]]


def ranges(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flat positions, offsets) of the half-open ranges ``starts[i]`` to ``ends[i]``."""
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    return np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1]), offsets


def _cut(offsets: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """As `ranges`, of the first or the last so many places of every row (0: all)."""
    starts, ends = offsets[:-1], offsets[1:]
    starts = np.maximum(starts, ends - last) if last else starts
    return ranges(starts, np.minimum(ends, starts + first) if first else ends)


def to_sids(table: SidTable, pids: np.ndarray, offsets: np.ndarray, rows: np.ndarray | None = None) -> SidLists:
    """SID texts of a flat list of pids by row; ``rows`` are their table rows where they are known already."""
    rows = table.find(pids) if rows is None else rows
    known = rows >= 0
    known_offsets = np.concatenate([[0], np.cumsum(known)])[offsets]
    missing = np.diff(offsets) - np.diff(known_offsets)
    return SidLists(table.joined(rows[known], known_offsets), missing.tolist(), pids[known], known_offsets)


class Batch:
    """Users of one record batch, with lazily computed columns. ``counts`` and ``bad_rows`` say what was left out."""

    def __init__(self, data: pa.RecordBatch, layout: Layout) -> None:
        self._data, self._layout = data, layout
        self.n = data.num_rows
        self.counts: Counter[str] = Counter()
        self.bad_rows: set[int] = set()
        self.values_read: Counter[str] = Counter()
        self.values_bad: Counter[str] = Counter()
        self._made: dict[tuple[object, ...], Any] = {}
        self.wrong: dict[str, np.ndarray] = {}
        self.uid = self.ints("uid")
        # Rows are of the training split where no row says another.
        self.split = self.ints("split") if self.has("split") else [TRAIN_SPLIT] * self.n
        self.windows = [value or 0 for value in self.ints("window")]

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # Counting what is left out.

    def skip(self, row: int, task: str, reason: str, count: int = 1) -> None:
        """Count what has nothing for ``task`` (an empty history, no target): legitimate, not bad."""
        if count:
            where = task if self.split[row] == TRAIN_SPLIT else f"benchmark of {task}"
            self.counts[f"{where}: {reason}"] += count

    def bad(self, row: int, task: str, reason: str) -> None:
        """Count a malformed row, or a malformed part of one; the row goes into the bad ratio, once."""
        self.bad_rows.add(row)
        self.skip(row, task, reason)

    @functools.cached_property
    def keys(self) -> list[tuple[object, ...]]:
        """What each row is: the values of the layout's key parts."""
        return list(zip(*map(self._key_column, self._layout.key), strict=True))

    def _key_column(self, part: str) -> list[Any]:
        known = {"uid": self.uid, "split": self.split, "window": self.windows}
        if part in known:
            return known[part]
        values = self.read(part)
        if isinstance(values, Lists):
            return [tuple(values.row(row).tolist()) for row in range(self.n)]
        return [None] * self.n if values is None else values

    # Columns.

    def has(self, part: str) -> bool:
        """Whether the input has a column for ``part``."""
        return self._layout.column(part) in self._data.schema.names

    def _column(self, part: str) -> pa.Array | None:
        """A part's column, as text with the layout's replacements where it has any."""
        if not self.has(part):
            return None
        column = self._data.column(self._layout.column(part))
        if (replace := self._layout.values.get(part)) is None or PARTS[part] not in ("int", "text"):
            return column
        shown = converted(column, Kind.SHOWN)[0].to_pylist()
        return pa.array([None if value is None else str(replace.get(value, value)) for value in shown], pa.string())

    def read(self, part: str) -> list[int | None] | list[str | None] | Lists | None:
        """A column as its part is; raises TypeError where its type cannot be that."""
        return {"int": self.ints, "text": self.texts}.get(PARTS[part], self.lists)(part)

    def ints(self, part: str) -> list[int | None]:
        """An integer column; None where a value is null or no whole number, or the column does not exist."""
        if (column := self._column(part)) is None:
            return [None] * self.n
        found, good, self.wrong[part] = integers(column, digits=part in self._layout.values)
        return [value if fine else None for value, fine in zip(found.tolist(), good.tolist(), strict=True)]

    def texts(self, part: str) -> list[str | None]:
        """A text column, stripped; None where a value is null, blank, unreadable or the column does not exist."""
        return self._once((part,), lambda: self._texts(part))

    def _texts(self, part: str) -> list[str | None]:
        if (column := self._column(part)) is None:
            return [None] * self.n
        found, wrong = texts(column)
        mark = CHAT_MARK if part in _WITH_SIDS else MARK
        values = [(value or "").strip() or None for value in found.to_pylist()]
        for row, value in enumerate(values):
            if wrong[row] or (value and mark.search(value)):
                reason = "is not UTF-8" if wrong[row] else "holds a mark of chats or items"
                self.counts[f"users: {self._layout.column(part)} {reason}"] += 1
                self.bad_rows.add(row)
                values[row] = None
        return values

    def unusable(self, row: int) -> str | None:
        """Why a row has no place in any output; None where it has one."""
        if self.uid[row] is None:
            return "uid is no whole number of 64 bits" if self.wrong["uid"][row] else "uid is null"
        if self.split[row] not in SPLITS:
            return "split is not 0, 1 or 2"
        return "window is no whole number" if "window" in self.wrong and self.wrong["window"][row] else None

    def lists(self, part: str) -> Lists | None:
        """A pid or mask column flat; None where the column does not exist."""
        return self._once((part,), lambda: self._lists(part))

    def _lists(self, part: str) -> Lists | None:
        if not self.has(part):
            return None
        column, mask = plain(self._column(part)), PARTS[part] == "mask"
        if mask or is_list(column.type) or pa.types.is_null(column.type):
            items, offsets, null = list_parts(column)
        else:
            null = column.is_null().to_numpy(zero_copy_only=False)
            items, offsets = column.drop_null(), np.concatenate([[0], np.cumsum(~null)])  # one item a row
        return Lists((self._flags if mask else self._pids)(self._layout.column(part), items), offsets, null)

    def _flags(self, column: str, items: pa.Array) -> np.ndarray:
        values, good, wrong = integers(items.cast(pa.int8()) if pa.types.is_boolean(items.type) else items)
        if odd := int((wrong | (good & (values != 0) & (values != 1))).sum()):
            self.counts[f"users: {column} holds what is not 0 or 1"] += odd
        return (values == 1).astype(np.int64)

    def _pids(self, column: str, items: pa.Array) -> np.ndarray:
        values, good, wrong = integers(items, digits=True)
        self.values_read[column] += len(items) - items.null_count
        if items.null_count:
            self.counts[f"users: null in {column}"] += items.null_count
        if wrong.any():
            self.counts[f"users: {column} holds what is not a pid"] += int(wrong.sum())
            self.values_bad[column] += int(wrong.sum())
        values[~good] = NO_PID
        return values

    # SIDs.

    def _sids(self, part: str, table: SidTable, places: np.ndarray, offsets: np.ndarray) -> SidLists:
        """SIDs of some places of a pid column's items, by row."""
        values = self.lists(part).values
        rows = self._once((part, id(table)), lambda: table.find(values))
        return to_sids(table, values[places], offsets, rows[places])

    def sids(self, part: str, table: SidTable, first: int = 0, last: int = 0) -> SidLists | None:
        """SIDs of a pid column: the first or the last so many of each row; None where the column does not exist."""
        if (lists := self.lists(part)) is None:
            return None
        key = (part, id(table), first, last)
        return self._once(key, lambda: self._sids(part, table, *_cut(lists.offsets, first, last)))

    def chosen(
        self, part: str, mask: str, table: SidTable, first: int = 0, last: int = 0, to_shorter: bool = False
    ) -> tuple[SidLists, np.ndarray, np.ndarray] | None:
        """Items whose mask is 1, the first or last so many of each row; None where a column does not exist.

        (SIDs, rows that have such an item, rows whose mask has another length than its list). The latter have no item
        chosen, or, with ``to_shorter``, those among the places that both lists have.
        """
        lists, flags = self.lists(part), self.lists(mask)
        if lists is None or flags is None:
            return None
        key = (part, mask, id(table), first, last, to_shorter)
        return self._once(key, lambda: self._choose(part, lists, flags, table, first, last, to_shorter))

    def _choose(self, part, lists, flags, table, first, last, to_shorter):
        wrong = (lists.lengths != flags.lengths) & ~flags.null & ~lists.null
        shared = np.minimum(lists.lengths, flags.lengths)
        if not to_shorter:
            shared[wrong] = 0
        in_list, offsets = ranges(lists.offsets[:-1], lists.offsets[:-1] + shared)
        in_flags, _ = ranges(flags.offsets[:-1], flags.offsets[:-1] + shared)
        on = np.flatnonzero(flags.values[in_flags])
        bounds = np.searchsorted(on, offsets)
        kept, group = _cut(bounds, first, last)
        return self._sids(part, table, in_list[on[kept]], group), np.diff(bounds) > 0, wrong
