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
import pyarrow.compute as pc

from data.onerec_data.layout import PARTS, Layout
from data.onerec_data.tables import SidTable

NO_PID = np.iinfo(np.int64).min  # a null or unreadable pid keeps its place, for the masks beside the list
TRAIN_SPLIT, TEST_SPLIT = 0, 1


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


def to_sids(
    table: SidTable, pids: np.ndarray, offsets: np.ndarray, rows: np.ndarray | None = None
) -> SidLists:
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
        self.uid = self.ints("uid")
        self.split = [value or 0 for value in self.ints("split")]
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
                columns.append(
                    known.get(part) or (self.texts(part) if PARTS[part] == "text" else self.ints(part))
                )
        return list(zip(*columns, strict=True))

    # Columns.

    def has(self, part: str) -> bool:
        """Whether the input has a column for ``part``."""
        return self._layout.column(part) in self._data.schema.names

    def _column(self, part: str) -> pa.Array | None:
        return self._data.column(self._layout.column(part)) if self.has(part) else None

    def ints(self, part: str) -> list[int | None]:
        """An integer column; None where a value is null or the column does not exist."""
        column = self._column(part)
        if column is None:
            return [None] * self.n
        return [None if value is None else int(value) for value in self._translated(part, column)]

    def texts(self, part: str) -> list[str | None]:
        """A text column, stripped of outer blanks; None where a value is null, blank or the column does not exist."""
        column = self._column(part)
        if column is None:
            return [None] * self.n
        return [(value or "").strip() or None for value in self._translated(part, column)]

    def _translated(self, part: str, column: pa.Array) -> list[Any]:
        values = column.to_pylist()
        replace = self._layout.values.get(part)
        return [replace.get(str(value), value) for value in values] if replace else values

    def lists(self, part: str) -> Lists | None:
        """A pid or mask column flat; None where the column does not exist."""
        if part not in self._lists:
            column = self._column(part)
            self._lists[part] = None if column is None else self._flat(part, column)
        return self._lists[part]

    def _flat(self, part: str, column: pa.Array) -> Lists:
        null = column.is_null().to_numpy(zero_copy_only=False)
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            offsets = np.concatenate([[0], np.cumsum(~null)])  # one item a row
            return Lists(self._numbers(part, column.drop_null()), offsets, null)
        lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return Lists(self._numbers(part, column.flatten()), offsets, null)

    def _numbers(self, part: str, values: pa.Array) -> np.ndarray:
        if PARTS[part] == "mask":
            if pa.types.is_null(values.type):
                return np.zeros(len(values), np.int64)
            return (pc.fill_null(values.cast(pa.float64()), 0).to_numpy(zero_copy_only=False) == 1).astype(
                np.int64
            )
        column = self._layout.column(part)
        self.values_read[column] += len(values) - values.null_count
        if values.null_count:
            self.counts[f"users: null in {column}"] += values.null_count
        if pa.types.is_integer(values.type):
            return values.cast(pa.int64()).fill_null(NO_PID).to_numpy(zero_copy_only=False)
        return self._parse(column, values)

    def _parse(self, column: str, values: pa.Array) -> np.ndarray:
        """Pids given as text or as floats; what is not a whole number is counted and keeps its place as NO_PID."""
        out = np.full(len(values), NO_PID, np.int64)
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_null(values.type):
            return out
        if pa.types.is_floating(values.type):
            floats = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
            good = valid & np.isfinite(floats) & (np.abs(floats) < 2**53)
            good[good] = floats[good] == np.floor(floats[good])
            out[good] = floats[good].astype(np.int64)
        else:
            text = pc.utf8_trim_whitespace(values)
            good = pc.match_substring_regex(text, r"^-?\d{1,18}$").fill_null(False)
            out[good.to_numpy(zero_copy_only=False)] = text.filter(good).cast(pa.int64()).to_numpy()
            good = good.to_numpy(zero_copy_only=False)
        wrong = int((valid & ~good).sum())
        if wrong:
            self.counts[f"users: {column} holds what is not a pid"] += wrong
            self.values_bad[column] += wrong
        return out

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
