"""A log as flat arrays, and the release's rows out of it, without a Python loop over events.

A `Log` holds every user's events in the order of time. Each is of a part: training, test, validation, or history, which
only stands before a test. `training` cuts the training events into rows, `held_out` makes a row a user of what is kept
out, and `to_table` is both as the release's columns.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data.adapters.release import MASKS, TEST, TRAIN, VALIDATION, least_items
from data.onerec_data.batch import ranges
from data.onerec_data.samples import MAX_TARGETS, VIDEO_HISTORY

HISTORY = 3  # the part of an event that is neither learnt nor asked for
ONE_IN, AT_MOST = 10, 1000  # users who are drawn to be asked, where not all are or can be


@dataclasses.dataclass
class Log:
    """Events of all users: user i has places ``bounds[i]`` to ``bounds[i + 1]`` of every array, oldest first.

    ``items`` int64, ``part`` int8, ``kinds`` uint8, a bit for each of `MASKS` (None: the log has no actions), ``query``
    an Arrow array of text (None: it has no queries).
    """

    items: np.ndarray
    part: np.ndarray
    bounds: np.ndarray
    kinds: np.ndarray | None = None
    query: pa.Array | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Events by user."""
        return np.diff(self.bounds)

    def taken(self, places: np.ndarray, bounds: np.ndarray) -> Log:
        """The events at ``places``, with ``bounds`` of their own."""
        kinds = None if self.kinds is None else self.kinds[places]
        query = None if self.query is None else self.query.take(pa.array(places))
        return Log(self.items[places], self.part[places], bounds, kinds, query)

    def of_part(self, wanted: np.ndarray) -> Log:
        """The events where ``wanted``, of the same users."""
        return self.taken(np.flatnonzero(wanted), np.concatenate([[0], np.cumsum(wanted)])[self.bounds])


@dataclasses.dataclass
class Rows:
    """Rows of one split over a `Log`: history ``start`` to ``middle``, targets ``middle`` to ``end``, all int64 [n]."""

    log: Log
    split: int
    user: np.ndarray
    window: np.ndarray
    start: np.ndarray
    middle: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.user)


def per_user(log: Log, values: np.ndarray) -> np.ndarray:
    """A user's value for each of the events."""
    return np.repeat(values, log.lengths)


def leave_one_out(log: Log, validation: bool, dropped: Counter[str]) -> None:
    """The last event of a user is the test's, the one before it validation's; short logs are for training alone.

    Where fewer than one user in ten has events enough, one in ten of the others is asked too: its last event is the
    test's, and that of another one in ten validation's.
    """
    log.part[:] = TRAIN
    lengths, least = log.lengths, least_items(validation)
    long, short = lengths >= least, np.flatnonzero((lengths > 1) & (lengths < least))
    last = log.bounds[1:] - 1
    log.part[last[long]] = TEST
    if validation:
        log.part[last[long] - 1] = VALIDATION
    asked = 0
    if long.sum() * ONE_IN < long.sum() + len(short):
        for first, part in ((0, TEST), (ONE_IN // 2, VALIDATION))[: 1 + validation]:
            chosen = one_in_ten(short, first)
            log.part[last[chosen]] = part
            asked += len(chosen)
    if len(short) > asked:
        dropped[f"user with fewer than {least} events: for training alone"] += len(short) - asked


def one_in_ten(users: np.ndarray, first: int = 0) -> np.ndarray:
    """One of ten ``users``, at most `AT_MOST`, drawn evenly from place ``first`` on."""
    return users[first :: max(ONE_IN, -(-len(users) // AT_MOST))]


def keep_validation(log: Log) -> None:
    """The last training event of one user in ten is validation's."""
    training = log.of_part(log.part == TRAIN)
    users = one_in_ten(np.flatnonzero(training.lengths >= least_items(False)))
    places = np.flatnonzero(log.part == TRAIN)
    log.part[places[training.bounds[1:][users] - 1]] = VALIDATION


def training(log: Log, n_targets: int, windows: int, dropped: Counter[str]) -> Rows:
    """Rows of the training events: the latest ``n_targets`` behind those before them, then the ones before these.

    At most ``windows`` rows a user (-1: until every event but the first is a target).
    """
    log = log.of_part(log.part == TRAIN)
    parts: list[tuple[np.ndarray, ...]] = []
    end, users, window = log.lengths.copy(), np.arange(len(log.bounds) - 1), 0
    earliest = end.copy()  # the first place of each user's events that a row has
    alone = int((end == 1).sum())
    if alone:
        dropped["user with a single training event: nothing to learn"] += alone
    while len(users := users[end[users] > 1]) and window != windows:
        middle = np.maximum(1, end[users] - n_targets)
        first = log.bounds[users]
        start = first + np.maximum(0, middle - VIDEO_HISTORY)
        parts.append((users, np.full(len(users), window), start, first + middle, first + end[users]))
        earliest[users] = np.minimum(earliest[users], start - first)
        end[users] = middle
        window += 1
    if cut := int(earliest[log.lengths > 1].sum()):
        dropped[f"training event that no row has: before the latest {VIDEO_HISTORY}"] += cut
    found = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, np.int64)] * 5
    order = np.lexsort((found[1], found[0]))
    return Rows(log, TRAIN, *(column[order] for column in found))


def held_out(log: Log, part: int, dropped: Counter[str]) -> Rows:
    """A row a user with events of ``part``: the first ten are targets, behind all that came before them.

    Other events that are kept out do not stand in the history.
    """
    asked = log.part == part
    place = np.flatnonzero(asked)
    user = np.searchsorted(log.bounds, place, side="right") - 1
    first = np.full(len(log.bounds) - 1, len(log.items))
    np.minimum.at(first, user, place)
    users = np.flatnonzero(first < len(log.items))
    before = np.arange(len(log.items)) < per_user(log, first)
    seen = log.of_part(before & (log.part != TEST) if part == VALIDATION else before & ~asked)
    wanted = log.of_part(asked)
    empty = seen.lengths[users] == 0
    if empty.any():
        dropped["test of a user without an event before it"] += int(empty.sum())
    users = users[~empty]
    more = int(np.maximum(0, wanted.lengths[users] - MAX_TARGETS).sum())
    if more:
        dropped[f"target behind the first {MAX_TARGETS} of its row"] += more
    history = (np.maximum(seen.bounds[users], seen.bounds[users + 1] - VIDEO_HISTORY), seen.bounds[users + 1])
    targets = (wanted.bounds[users], np.minimum(wanted.bounds[users + 1], wanted.bounds[users] + MAX_TARGETS))
    return _rows(seen, history, wanted, targets, part, users, np.zeros(len(users), np.int64))


def given_rows(log: Log, lengths: np.ndarray, user: np.ndarray, split: int) -> Rows:
    """Rows that the log has as such: row i is one "user" of ``log``, its first ``lengths[i]`` events the history."""
    count = Counter[int]()
    window = np.zeros(len(user), np.int64)
    for row in range(len(user) - 1, -1, -1):  # the latest row of a user is window 0
        window[row] = count[user[row]]
        count[user[row]] += 1
    start, middle = log.bounds[:-1], log.bounds[:-1] + lengths
    end = np.minimum(log.bounds[1:], middle + MAX_TARGETS)
    return Rows(log, split, user, window, np.maximum(start, middle - VIDEO_HISTORY), middle, end)


def _rows(
    seen: Log,
    history: tuple[np.ndarray, np.ndarray],
    wanted: Log,
    targets: tuple[np.ndarray, np.ndarray],
    split: int,
    users: np.ndarray,
    window: np.ndarray,
) -> Rows:
    """Rows whose histories and targets are in two logs, over one log in which they follow each other."""
    n_history, n_target = history[1] - history[0], targets[1] - targets[0]
    start = np.concatenate([[0], np.cumsum(n_history + n_target)])
    middle, end = start[:-1] + n_history, start[1:]
    both = _joined(seen, wanted)
    places = np.empty(start[-1], np.int64)
    places[ranges(start[:-1], middle)[0]] = ranges(*history)[0]
    places[ranges(middle, end)[0]] = ranges(*targets)[0] + len(seen.items)
    return Rows(both.taken(places, start), split, users, window, start[:-1], middle, end)


def _joined(a: Log, b: Log) -> Log:
    kinds = None if a.kinds is None or b.kinds is None else np.concatenate([a.kinds, b.kinds])
    query = None if a.query is None or b.query is None else pa.concat_arrays([a.query, b.query])
    items, part = np.concatenate([a.items, b.items]), np.concatenate([a.part, b.part])
    return Log(items, part, np.array([0, len(items)]), kinds, query)


def to_table(rows: Rows, chosen: slice, dropped: Counter[str]) -> pa.Table:
    """Some of the rows as the release has them: uid, split, window, both lists of pids, their masks, the query."""
    log, user = rows.log, rows.user[chosen]
    sides = {"hist": (rows.start[chosen], rows.middle[chosen]), "target": (rows.middle[chosen], rows.end[chosen])}
    columns: dict[str, pa.Array] = {
        "uid": pa.array(user + 1, pa.int64()),
        "split": pa.array(np.full(len(user), rows.split), pa.int64()),
        "window": pa.array(rows.window[chosen], pa.int64()),
    }
    for side, (start, end) in sides.items():
        places, offsets = ranges(start, end)
        columns[f"{side}_video_pid"] = _lists(log.items[places], offsets)
        for bit, label in enumerate(MASKS if log.kinds is not None else ()):
            columns[f"{side}_video_{label}"] = _lists((log.kinds[places] >> bit & 1).astype(np.int64), offsets)
    if log.query is not None:
        start, end = sides["target"]
        columns["query"] = _queries(log.query, start, end, dropped)
    return pa.table(columns)


def _queries(query: pa.Array, start: np.ndarray, end: np.ndarray, dropped: Counter[str]) -> pa.Array:
    """The query of a row's target, where it has one target alone: of several, each had a query of its own."""
    alone = end - start == 1
    places, _ = ranges(start[~alone], end[~alone])
    if len(places) and (lost := len(places) - query.take(pa.array(places)).null_count):
        dropped["query of a row with several targets"] += lost
    return query.take(pa.array(np.where(alone, start, 0), mask=~alone))


def _lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, pa.int64()))


def merged(rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """The events that a user's rows show, in order, each as (row, its place in the row).

    ``rows`` are histories with their targets, ``sizes`` the histories' lengths. A history that begins with what the
    rows before it end with goes on from there; another one follows.
    """
    events: list[int] = []
    found: list[tuple[int, int]] = []
    for number, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        known = list(row)
        shared = next(k for k in range(min(len(events), size), -1, -1) if events[len(events) - k :] == known[:k])
        events += known[shared:]
        found += [(number, place) for place in range(shared, len(known))]
    return found
