"""A batch of users as flat arrays: list columns by offsets, SID texts for whole columns at once.

Histories are hundreds of items long and every task reads them, so what is done per item happens in NumPy and Arrow, and
the tasks' Python runs once a user.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
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


@dataclasses.dataclass(frozen=True)
class SidLists:
    """Items with a SID, by row: the SID texts joined, the pids, and how many pids had no SID."""

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
        self._lists: dict[str, Lists | None] = {}
        self._found: dict[tuple[str, int], np.ndarray] = {}
        self._sids: dict[tuple[object, ...], SidLists] = {}
        self.wrong: dict[str, np.ndarray] = {}
        self._texts: dict[str, list[str | None]] = {}
        self.uid = self.ints("uid")
        # Rows are of the training split where no row says another.
        self.split = self.ints("split") if self.has("split") else [TRAIN_SPLIT] * self.n
        self.windows = [value or 0 for value in self.ints("window")]

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
        columns: list[list[Any]] = []
        for part in self._layout.key:
            if PARTS[part] == "pids" and (lists := self.lists(part)) is not None:
                bounds = lists.offsets.tolist()
                columns.append([tuple(lists.values[a:b].tolist()) for a, b in itertools.pairwise(bounds)])
            else:
                known = {"uid": self.uid, "split": self.split, "window": self.windows}
                columns.append(known.get(part) or (self.texts(part) if PARTS[part] == "text" else self.ints(part)))
        return list(zip(*columns, strict=True))

    # Columns.

    def has(self, part: str) -> bool:
        """Whether the input has a column for ``part``."""
        return self._layout.column(part) in self._data.schema.names

    def _column(self, part: str) -> pa.Array | None:
        return self._data.column(self._layout.column(part)) if self.has(part) else None

    def ints(self, part: str) -> list[int | None]:
        """An integer column; None where a value is null or no whole number, or the column does not exist."""
        if (column := self._column(part)) is None:
            return [None] * self.n
        found, good, self.wrong[part] = integers(self._replaced(part, column), digits=part in self._layout.values)
        return [value if fine else None for value, fine in zip(found.tolist(), good.tolist(), strict=True)]

    def texts(self, part: str) -> list[str | None]:
        """A text column, stripped of outer blanks; None where a value is null, blank, unreadable or the column does not exist."""
        if part not in self._texts:
            column = self._column(part)
            found, wrong = (
                texts(self._replaced(part, column)) if column is not None else (pa.nulls(self.n), np.zeros(self.n))
            )
            mark = CHAT_MARK if part in _WITH_SIDS else MARK
            self._texts[part] = values = [(value or "").strip() or None for value in found.to_pylist()]
            for row, value in enumerate(values):
                if wrong[row] or (value and mark.search(value)):
                    reason = "is not UTF-8" if wrong[row] else "holds a mark of chats or items"
                    self.counts[f"users: {self._layout.column(part)} {reason}"] += 1
                    self.bad_rows.add(row)
                    values[row] = None
        return self._texts[part]

    def _replaced(self, part: str, column: pa.Array) -> pa.Array:
        """A column with the layout's replacements of single values, as text where there are any."""
        if (replace := self._layout.values.get(part)) is None:
            return column
        shown = converted(column, Kind.SHOWN)[0].to_pylist()
        return pa.array([None if value is None else str(replace.get(value, value)) for value in shown], pa.string())

    def unusable(self, row: int) -> str | None:
        """Why a row has no place in any output; None where it has one."""
        if self.uid[row] is None:
            return "uid is no whole number of 64 bits" if self.wrong["uid"][row] else "uid is null"
        if self.split[row] not in SPLITS:
            return "split is not 0, 1 or 2"
        return "window is no whole number" if "window" in self.wrong and self.wrong["window"][row] else None

    def lists(self, part: str) -> Lists | None:
        """A pid or mask column flat; None where the column does not exist."""
        if part not in self._lists:
            column = self._column(part)
            self._lists[part] = None if column is None else self._flat(part, column)
        return self._lists[part]

    def _flat(self, part: str, column: pa.Array) -> Lists:
        column = plain(column)
        if is_list(column.type) or pa.types.is_null(column.type):
            items, offsets, null = list_parts(column)
        else:
            null = column.is_null().to_numpy(zero_copy_only=False)
            items, offsets = column.drop_null(), np.concatenate([[0], np.cumsum(~null)])  # one item a row
        return Lists(self._numbers(part, items), offsets, null)

    def _numbers(self, part: str, items: pa.Array) -> np.ndarray:
        column, mask = self._layout.column(part), PARTS[part] == "mask"
        items = items.cast(pa.int8()) if pa.types.is_boolean(items.type) else items
        values, good, wrong = integers(items, digits=not mask)
        if mask:
            if odd := int((wrong | (good & (values != 0) & (values != 1))).sum()):
                self.counts[f"users: {column} holds what is not 0 or 1"] += odd
            return (values == 1).astype(np.int64)
        self.values_read[column] += len(items) - items.null_count
        if items.null_count:
            self.counts[f"users: null in {column}"] += items.null_count
        if wrong.any():
            self.counts[f"users: {column} holds what is not a pid"] += int(wrong.sum())
            self.values_bad[column] += int(wrong.sum())
        values[~good] = NO_PID
        return values

    # SIDs.

    def _rows(self, part: str, table: SidTable) -> np.ndarray:
        key = (part, id(table))
        if key not in self._found:
            self._found[key] = table.find(self.lists(part).values)
        return self._found[key]

    def sids(self, part: str, table: SidTable, first: int = 0, last: int = 0) -> SidLists | None:
        """SIDs of a pid column: the first or the last so many of each row; None where the column does not exist."""
        lists = self.lists(part)
        if lists is None:
            return None
        key = (part, id(table), first, last)
        if key not in self._sids:
            starts, ends = lists.offsets[:-1], lists.offsets[1:]
            starts = np.maximum(starts, ends - last) if last else starts
            ends = np.minimum(ends, starts + first) if first else ends
            places, offsets = ranges(starts, ends)
            self._sids[key] = to_sids(table, lists.values[places], offsets, self._rows(part, table)[places])
        return self._sids[key]

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
        if key not in self._sids:
            self._sids[key] = self._choose(part, lists, flags, table, first, last, to_shorter)
        return self._sids[key]

    def _choose(self, part, lists, flags, table, first, last, to_shorter):
        wrong = (lists.lengths != flags.lengths) & ~flags.null & ~lists.null
        if wrong.any() or flags.null.any() or lists.null.any():
            shared = np.minimum(lists.lengths, flags.lengths)
            if not to_shorter:
                shared[wrong] = 0
            in_list, offsets = ranges(lists.offsets[:-1], lists.offsets[:-1] + shared)
            in_flags, _ = ranges(flags.offsets[:-1], flags.offsets[:-1] + shared)
            on = np.flatnonzero(flags.values[in_flags])
            places = in_list[on]
        else:
            offsets = lists.offsets
            places = on = np.flatnonzero(flags.values)
        bounds = np.searchsorted(on, offsets)
        starts, ends = bounds[:-1], bounds[1:]
        present = ends > starts
        starts = np.maximum(starts, ends - last) if last else starts
        ends = np.minimum(ends, starts + first) if first else ends
        kept, group = ranges(starts, ends)
        places = places[kept]
        sids = to_sids(table, lists.values[places], group, self._rows(part, table)[places])
        return sids, present, wrong
