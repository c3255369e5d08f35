"""A log of histories, a row a user, a list of items and what came next, as a `Log` and as the rows of the tests."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from data.adapters.release import TEST, TRAIN, VALIDATION
from data.onerec_data.samples import MAX_TARGETS
from data.own.reader import NONE, UNKNOWN, Columns, Read, Reader, by_time, split_events
from data.own.rows import HISTORY, Log, Rows, given_rows, held_out, keep_validation, merged
from data.own.values import lists_of_text
from onerec.errors import InputError


@dataclasses.dataclass
class _Row:
    """A history with its targets: items, how many of them are the history, the targets' kinds and query."""

    user: int
    items: list[int]
    size: int
    part: int
    time: float
    kind: int
    query: str | None


def read_histories(columns: Sequence[tuple[Columns, int | None]], reader: Reader) -> Read:
    """The log of all files, a row a history and its targets; raises `InputError` where it cannot be used.

    With a split of its own (or by a time) a test row stays as it is, and the training rows of a user become one
    sequence again, by what their ends share. Without one, a user's rows become a sequence of which one is left out.
    """
    users: dict[str, int] = {}
    rows: list[_Row] = []
    total = 0
    for each, split in columns:
        each.need("user", "the user")
        roles = ("user", "history", "target", "split", "time", "action", "query")
        seen = 0
        for batch in each.batches(roles):
            rows += _history_rows(each, batch, split, users, reader)
            seen += len(batch["user"])
        reader.bad += each.file.bad
        reader.manifest.input(each.file.path, seen + each.file.bad.total())
        total += seen + each.file.bad.total()
    reader.finish(total)
    reader.check_known(any(row.items for row in rows))
    options, dropped = reader.options, reader.manifest.dropped
    if options.split_time:
        times = np.array([row.time for row in rows])
        if np.isnan(times).any():
            raise InputError("--split_time", "needs a time in every row of the logs", "--columns time=<column>")
        for row, part in zip(rows, by_time(times, reader).tolist(), strict=True):
            row.part = part
    whole = all(row.part == NONE for row in rows)
    log = _sequences([row for row in rows if row.part in (NONE, TRAIN)], len(users))
    names = pa.array(users, pa.string())
    if whole:
        return Read(log, names, split_events(log, np.empty(0), reader))
    tests = [_given([row for row in rows if row.part == part], part, dropped) for part in (TEST, VALIDATION)]
    if options.validation and not len(tests[1]):
        keep_validation(log)
        tests[1] = held_out(log, VALIDATION, dropped)
    return Read(log, names, tests if options.validation else tests[:1])


def _history_rows(
    each: Columns, batch: dict[str, pa.Array], split: int | None, users: dict[str, int], reader: Reader
) -> Iterator[_Row]:
    path, count = each.file.path, len(batch["user"])
    lists = {
        role: lists_of_text(batch[role], path, each.by_role[role], reader.items.names)
        for role in ("history", "target")
        if role in batch
    }
    histories, targets = lists["history"], lists.get("target", [[]] * count)
    flat = pa.array(
        [name for pair in zip(histories, targets, strict=True) for part in pair for name in part], pa.string()
    )
    numbers = (reader.numbers(flat) + 1).tolist()  # 0: not in the catalogue
    names = each.text(batch, "user").to_pylist()
    words = each.text(batch, "split") if split is None else None
    parts = [split if split is not None else NONE] * count if words is None else reader.parts(words, path).tolist()
    no_times = np.full(count, np.nan)
    times = reader.clock.read(batch["time"], path, each.by_role["time"]) if "time" in batch else no_times
    actions = each.text(batch, "action")
    kinds = [0] * count if actions is None else reader.kinds(actions).tolist()
    queries = each.text(batch, "query")
    asked = [None] * count if queries is None else queries.to_pylist()
    place = 0
    for at, name in enumerate(names):
        middle, end = place + len(histories[at]), place + len(histories[at]) + len(targets[at])
        history, target = ([n for n in numbers[a:b] if n] for a, b in ((place, middle), (middle, end)))
        reader.manifest.drop(UNKNOWN, end - place - len(history) - len(target))
        place = end
        if name is None:
            reader.bad["history without a user"] += 1
        elif words is not None and parts[at] == NONE:
            reader.bad["history without a split"] += 1
        elif not history + target:
            reader.manifest.drop("history without an item of the catalogue")
        else:
            number = users.setdefault(name, len(users))
            yield _Row(number, history + target, len(history), parts[at], times[at], kinds[at], asked[at])


def _sequences(rows: Sequence[_Row], n_users: int) -> Log:
    """Every user's rows as one sequence of training events, by time where rows have one, else in the files' order."""
    of_user: list[list[_Row]] = [[] for _ in range(n_users)]
    for row in rows:
        of_user[row.user].append(row)
    items: list[int] = []
    kinds: list[int] = []
    queries: list[str | None] = []
    bounds = [0]
    for some in of_user:
        some.sort(key=lambda row: 0.0 if np.isnan(row.time) else row.time)
        for row, place in merged([row.items for row in some], [row.size for row in some]):
            target = place >= some[row].size
            items.append(some[row].items[place])
            kinds.append(some[row].kind if target else 0)
            queries.append(some[row].query if target else None)
        bounds.append(len(items))
    part = np.full(len(items), TRAIN if any(row.part == TRAIN for row in rows) else NONE, np.int8)
    return Log(np.array(items, np.int64), part, np.array(bounds), *_optional(rows, kinds, queries))


def _optional(
    rows: Sequence[_Row], kinds: Sequence[int], queries: Sequence[str | None]
) -> tuple[np.ndarray | None, pa.Array | None]:
    """Kinds and queries of events; None where no row has one."""
    with_kinds = np.array(kinds, np.uint8) if any(row.kind for row in rows) else None
    with_queries = pa.array(queries, pa.string()) if any(row.query for row in rows) else None
    return with_kinds, with_queries


def _given(rows: Sequence[_Row], part: int, dropped: Counter[str]) -> Rows:
    """Rows that are asked about as they are; those without a history or a target are counted."""
    usable = [row for row in rows if 0 < row.size < len(row.items)]
    if len(usable) < len(rows):
        dropped["test row without a history or a target"] += len(rows) - len(usable)
    lengths = [len(row.items) for row in usable]
    if more := sum(max(0, len(row.items) - row.size - MAX_TARGETS) for row in usable):
        dropped[f"target behind the first {MAX_TARGETS} of its row"] += more
    targets = [[i >= row.size for i in range(len(row.items))] for row in usable]
    kinds = [row.kind * is_target for row, flags in zip(usable, targets, strict=True) for is_target in flags]
    queries = [
        row.query if is_target else None for row, flags in zip(usable, targets, strict=True) for is_target in flags
    ]
    items = np.array([item for row in usable for item in row.items], np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    log = Log(items, np.full(len(items), HISTORY, np.int8), bounds, *_optional(usable, kinds, queries))
    user = np.array([row.user for row in usable], np.int64)
    return given_rows(log, np.array([row.size for row in usable], np.int64), user, part)
