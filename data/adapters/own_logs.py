"""The logs of a catalogue of one's own: events (user, item, time) or histories (user, list, target), as a `Log`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.own_items import WORDS, Items
from data.adapters.own_rows import HISTORY, Log, Rows, given_rows, held_out, keep_validation, leave_one_out, merged
from data.adapters.own_tables import TableFile, as_text, find_role, lists_of_text
from data.adapters.own_times import Clock
from data.adapters.release import MASKS, TEST, TRAIN, VALIDATION
from onerec.errors import InputError
from onerec.run import Manifest, progress

NONE = -1  # an item that is not in the catalogue, an event whose part is not said
Source = tuple[TableFile, int | None]  # a file of the log, and the split that its rows are of (None: it does not say)
UNKNOWN = "event with an item that is not in the catalogue"
_BITS = {word: 1 << bit for bit, label in enumerate(MASKS) for word in WORDS["actions"][label]}
_BITS |= dict.fromkeys(WORDS["actions"][""], 0)


@dataclasses.dataclass
class Options:
    """How a log is read: the flags of the adapter that matter here."""

    path: Path
    given: Mapping[str, Sequence[str]]
    split_time: str
    validation: bool
    max_bad_ratio: float


@dataclasses.dataclass
class Read:
    """A log and what is kept out of it; ``users`` are the users' own ids by number less one."""

    log: Log
    users: pa.Array
    tests: list[Rows]


class Columns:
    """The columns of one file by their role."""

    def __init__(self, file: TableFile, given: Mapping[str, Sequence[str]]) -> None:
        self.file = file
        self.by_role = {role: find_role(file.names, role, given, names) for role, names in WORDS["logs"].items()}
        if self.by_role["history"] is None:
            self.by_role["target"] = None

    @property
    def histories(self) -> bool:
        """Whether a row is a history and its target, not an event."""
        return self.by_role["history"] is not None

    def need(self, role: str, what: str) -> None:
        """Raise `InputError` where no column plays ``role``."""
        if self.by_role[role] is None:
            usual = ", ".join(WORDS["logs"][role][:6])
            right = f"it has {', '.join(self.file.names)}: --columns {role}=<one of them>"
            raise InputError(self.file.path, f"has no column of {what} (such as {usual})", right)

    def batches(self, roles: Sequence[str]) -> Iterator[dict[str, pa.Array]]:
        """The rows by role, of the ``roles`` that have a column."""
        names = {role: self.by_role[role] for role in roles if self.by_role[role] is not None}
        for batch in self.file.batches(list(dict.fromkeys(names.values()))):
            yield {role: batch.column(name) for role, name in names.items()}

    def text(self, batch: Mapping[str, pa.Array], role: str) -> pa.Array | None:
        """A role's column as text; None where the file has none."""
        return as_text(batch[role], self.file.path, self.by_role[role]) if role in batch else None


class Reader:
    """What events and histories share: ids, splits, actions, and the counting of what is left out."""

    def __init__(self, items: Items, options: Options, manifest: Manifest) -> None:
        self.items, self.options, self.manifest = items, options, manifest
        self.clock = Clock()
        self.bad: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.strange: list[str] = []  # ids that are not in the catalogue, some

    def numbers(self, names: pa.Array) -> np.ndarray:
        """Items' numbers less one, int64; `NONE` where an id is not in the catalogue."""
        found = pc.index_in(names, self.items.names).fill_null(NONE).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(self.strange) < 3 and (found == NONE).any():
            self.strange += names.filter(pa.array(found == NONE)).drop_null().slice(0, 3).to_pylist()
        return found

    def kinds(self, actions: pa.Array) -> np.ndarray:
        """A bit for every mask that an action sets, uint8; unknown actions set none and are counted."""
        encoded = pc.utf8_lower(pc.utf8_trim_whitespace(actions)).dictionary_encode()
        words = encoded.dictionary.to_pylist()
        bits = np.array([*(_BITS.get(word.replace(" ", "_"), 0) for word in words), 0], np.uint8)
        places = encoded.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
        counts = np.bincount(places, minlength=len(words) + 1)
        for word, count in zip(words, counts, strict=False):
            if word.replace(" ", "_") not in _BITS:
                self.actions[f"action of no known kind, {word}: the event stays"] += int(count)
        return bits[places]

    def parts(self, words: pa.Array, path: Path) -> np.ndarray:
        """Splits from numbers or words, int8; raises `InputError` for a word that is none."""
        encoded = pc.utf8_lower(pc.utf8_trim_whitespace(words)).dictionary_encode()
        known = [WORDS["splits"].get(word.removesuffix(".0")) for word in encoded.dictionary.to_pylist()]
        if None in known:
            word = encoded.dictionary.to_pylist()[known.index(None)]
            raise InputError(path, f"has the split {word}", "train, valid or test; or 0, 2 or 1")
        places = encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        return np.array([*known, NONE], np.int8)[places]

    def finish(self, rows: int) -> None:
        """Note what was bad; raises `InputError` where it was too much, or no item was known."""
        for reason, count in self.bad.items():
            self.manifest.drop(reason, count)
        self.manifest.check_bad_ratio(self.options.path, self.bad.total(), rows, self.options.max_bad_ratio)
        for reason, count in self.actions.items():
            self.manifest.drop(reason, count)

    def check_known(self, any_known: bool) -> None:
        """Raise `InputError` where the log names no item of the catalogue."""
        if not any_known:
            ids = " or ".join(map(repr, self.strange[:2])) or "none"
            right = f"those of the catalogue, as {self.items.names[0].as_py()!r}"
            raise InputError(self.options.path, f"names no item of the catalogue (its ids: {ids})", right)


def read_logs(sources: Sequence[Source], items: Items, options: Options, manifest: Manifest) -> Read:
    """The log of all files, split; raises `InputError` where it cannot be used."""
    columns = [(Columns(file, options.given), split) for file, split in sources]
    kinds = {each.histories for each, _ in columns}
    if len(kinds) > 1:
        raise InputError(options.path, "holds events and histories", "one of the two in all files")
    said = {split is not None or each.by_role["split"] is not None for each, split in columns}
    if len(said) > 1:
        raise InputError(options.path, "says of some rows alone which split they are of", "a split of all, or of none")
    reader = Reader(items, options, manifest)
    read = (read_histories if kinds.pop() else read_events)(columns, reader)
    with_tests = {user for rows in read.tests if rows.split == TEST for user in rows.user.tolist()}
    users = int((read.log.lengths > 0).sum())
    if max(users, len(with_tests)) < 2:
        raise InputError(options.path, f"holds {users} user{'s' if users != 1 else ''}", "at least two")
    if not with_tests:
        raise InputError(
            options.path, "leaves no user to test", "users with at least four events, or rows of a test split"
        )
    return read


# --- events


def read_events(columns: Sequence[tuple[Columns, int | None]], reader: Reader) -> Read:
    """A row an event; see `read_logs`. Events of one time stay in the order of the files."""
    stored: dict[str, list] = {name: [] for name in ("user", "item", "time", "kind", "part", "query")}
    rows = 0
    for each, split in columns:
        for role, what in (("user", "the user"), ("item", "the item"), ("time", "the time of an event")):
            each.need(role, what)
        before = rows
        batches = each.batches(("user", "item", "time", "action", "query", "split"))
        for batch in progress(batches, str(each.file.path), unit="event", size=lambda b: len(b["user"])):
            _add(stored, each, batch, split, reader)
            rows += len(batch["user"])
        reader.bad += each.file.bad
        reader.manifest.input(each.file.path, rows - before + each.file.bad.total())
    reader.finish(rows)
    users = pa.chunked_array(stored.pop("user"), pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    names = users.chunk(0).dictionary if users.num_chunks else pa.array([], pa.string())
    user = np.concatenate([chunk.indices.to_numpy() for chunk in users.chunks] or [np.empty(0, np.int32)])
    reader.check_known(len(user) > 0)
    # What no file has a column of costs no memory from here on.
    has = {role for each, _ in columns for role, column in each.by_role.items() if column is not None}
    queries = stored.pop("query")
    query = pa.chunked_array(queries, pa.string()).combine_chunks() if "query" in has else None
    values = {name: np.concatenate(parts) for name, parts in stored.items() if name != "kind" or "action" in has}
    log = _in_order(user, len(names), values, query, reader)
    return Read(log, names, _split_events(log, values["time"], reader))


def _add(stored: dict[str, list], each: Columns, batch: dict, split: int | None, reader: Reader) -> None:
    """Add a batch's events whose user, item and time are there and whose item is known."""
    path = each.file.path
    users, names = each.text(batch, "user"), each.text(batch, "item")
    times = reader.clock.read(batch["time"], path, each.by_role["time"])
    found = reader.numbers(names)
    valid = {
        "event without a user": users.is_valid().to_numpy(zero_copy_only=False),
        "event without an item": names.is_valid().to_numpy(zero_copy_only=False),
        "event without a time, or with one that cannot be read": ~np.isnan(times),
    }
    good = np.ones(len(found), bool)
    for reason, fine in valid.items():
        reader.bad[reason] += int((good & ~fine).sum())
        good &= fine
    reader.manifest.drop(UNKNOWN, int((good & (found == NONE)).sum()))
    good &= found != NONE
    if (words := each.text(batch, "split")) is not None and split is None:
        part = reader.parts(words, path)
        reader.bad["event without a split"] += int((good & (part == NONE)).sum())
        good &= part != NONE
    else:
        part = np.full(len(found), NONE if split is None else split, np.int8)
    keep = pa.array(good)
    encoded = users.filter(keep).dictionary_encode()
    stored["user"].append(pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), encoded.dictionary))
    stored["item"].append(found[good].astype(np.int32))
    stored["time"].append(times[good])
    stored["part"].append(part[good])
    actions, query = each.text(batch, "action"), each.text(batch, "query")
    kinds = np.zeros(int(good.sum()), np.uint8) if actions is None else reader.kinds(actions.filter(keep))
    stored["kind"].append(kinds)
    stored["query"].append(pa.nulls(len(kinds), pa.string()) if query is None else query.filter(keep))


def _in_order(
    user: np.ndarray, n_users: int, values: dict[str, np.ndarray], query: pa.Array | None, reader: Reader
) -> Log:
    """Events by user and time; of those of one user, item and time the first stays, with the kinds of all."""
    item, time = values["item"], values["time"]
    order = np.lexsort((item, time, user))
    same = np.ones(len(order), bool)
    for column in (user, time, item):
        same[1:] &= column[order[1:]] == column[order[:-1]]
    same[:1] = False
    first = np.flatnonzero(~same)
    if len(first) < len(order):
        reader.manifest.drop("event of the same user, item and time as another: one of them", len(order) - len(first))
    kinds = values.get("kind")
    if kinds is not None:
        whole = np.bitwise_or.reduceat(kinds[order], first)
        kinds[order[first]] = whole
    kept = np.sort(order[first])
    kept = kept[np.lexsort((time[kept], user[kept]))]
    bounds = np.concatenate([[0], np.cumsum(np.bincount(user[kept], minlength=n_users))])
    values["time"] = time[kept]
    return Log(
        item[kept].astype(np.int64) + 1,
        values["part"][kept],
        bounds,
        None if kinds is None else kinds[kept],
        None if query is None else query.take(pa.array(kept)),
    )


def _split_events(log: Log, times: np.ndarray, reader: Reader) -> list[Rows]:
    """Give every event its part, and make the rows of what is kept out."""
    options, dropped = reader.options, reader.manifest.dropped
    if options.split_time:
        log.part = np.where(times >= reader.clock.moment(options.split_time), TEST, TRAIN).astype(np.int8)
    elif (log.part == NONE).all():
        leave_one_out(log, options.validation, dropped)
    if options.validation and not (log.part == VALIDATION).any():
        keep_validation(log)
    kept_out = (TEST, VALIDATION) if options.validation else (TEST,)
    return [held_out(log, part, dropped) for part in kept_out]


# --- histories


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
    """A row a history and its targets; see `read_logs`.

    With a split of its own (or by a time) a test row stays as it is, and the training rows of a user become one
    sequence again, by what their ends share. Without one, a user's rows become a sequence of which one is left out.
    """
    users: dict[str, int] = {}
    rows: list[_Row] = []
    for each, split in columns:
        each.need("user", "the user")
        roles = ("user", "history", "target", "split", "time", "action", "query")
        seen = 0
        for batch in each.batches(roles):
            rows += _history_rows(each, batch, split, users, reader)
            seen += len(batch["user"])
        reader.bad += each.file.bad
        reader.manifest.input(each.file.path, seen + each.file.bad.total())
    reader.finish(sum(n or 0 for n in reader.manifest.inputs.values()))
    reader.check_known(any(row.items for row in rows))
    options, dropped = reader.options, reader.manifest.dropped
    if options.split_time:
        moment = reader.clock.moment(options.split_time)
        if np.isnan([row.time for row in rows]).any():
            raise InputError("--split_time", "needs a time in every row of the logs", "--columns time=<column>")
        for row in rows:
            row.part = TEST if row.time >= moment else TRAIN
    whole = all(row.part == NONE for row in rows)
    log = _sequences([row for row in rows if row.part in (NONE, TRAIN)], len(users))
    names = pa.array(users, pa.string())
    if whole:
        return Read(log, names, _split_events(log, np.empty(0), reader))
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
        role: lists_of_text(batch[role], path, each.by_role[role]) for role in ("history", "target") if role in batch
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
