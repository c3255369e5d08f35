"""What is read of a log: its columns by role, ids as items' numbers, splits, actions, and what is left out of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.adapters.release import MASKS, TEST, TRAIN, VALIDATION
from data.own.items import WORDS, Items
from data.own.rows import Log, Rows, held_out, keep_validation, leave_one_out
from data.own.tables import TableFile, find_role
from data.own.times import Clock
from data.own.values import as_text
from onerec.errors import InputError
from onerec.run import Manifest

NONE = -1  # an item that is not in the catalogue, an event whose part is not said
Source = tuple[TableFile, int | None]  # a file of the log, and the split that its rows are of (None: it does not say)
_FLOAT = r"^(\d+)\.0$"  # 12.0 for 12: pandas makes floats of whole numbers where one is missing
MANY_UNKNOWN = 0.1  # share of the named items past which their absence is warned of
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

    @property
    def read(self) -> dict[str, list[str | None]]:
        """The columns that are read, by role."""
        history = ("user", "history", "target", "time", "action", "query", "split")
        event = ("user", "item", "time", "action", "query", "split")
        return {role: [self.by_role[role]] for role in (history if self.histories else event)}

    def need(self, role: str, what: str) -> None:
        """Raise `InputError` where no column plays ``role``."""
        if self.by_role[role] is None:
            raise self.file.lacks(what, role, WORDS["logs"][role])

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
        self.named = self.unknown = 0  # how often an item is named, and one that is not in the catalogue

    def numbers(self, names: pa.Array) -> np.ndarray:
        """Items' numbers less one, int64; `NONE` where an id is not in the catalogue."""
        places = pc.index_in(names, self.items.names)
        if places.null_count > names.null_count:
            whole = pc.replace_substring_regex(names, _FLOAT, r"\1")
            places = pc.coalesce(places, pc.index_in(whole, self.items.names))
        found = places.fill_null(NONE).to_numpy(zero_copy_only=False).astype(np.int64)
        self.named += len(names) - names.null_count
        self.unknown += int((found == NONE).sum()) - names.null_count
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
        """Raise `InputError` where the log names no item of the catalogue; warn where it names many others."""
        if not any_known and not self.strange:
            raise InputError(self.options.path, "holds no row that can be used", "a user, an item and a time a row")
        if not any_known:
            ids = " or ".join(map(repr, self.strange[:2]))
            right = f"those of the catalogue, as {self.items.names[0].as_py()!r}"
            raise InputError(self.options.path, f"names no item of the catalogue (its ids: {ids})", right)
        if self.unknown > MANY_UNKNOWN * self.named:
            ids = f"such as {self.strange[0]!r}, where it has {self.items.names[0].as_py()!r}"
            times = f"{self.unknown:,} of {self.named:,} times"
            what = f"{times} that the logs name an item, it is not in the catalogue ({ids})"
            self.manifest.warn(what, "those are left out; write ids alike in both tables, and list all items")


def by_time(times: np.ndarray, reader: Reader) -> np.ndarray:
    """int8 [n]: the part of what has ``times``; raises `InputError` where the split time leaves one without any."""
    text = reader.options.split_time
    later = times >= reader.clock.moment(text)
    if later.all() or not later.any():
        first, last = (reader.clock.shown(time) for time in (times.min(), times.max()))
        what = f"is {text}: {'every' if later.any() else 'no'} row of the logs is from then or later"
        raise InputError("--split_time", what, f"between {first} and {last}")
    return np.where(later, TEST, TRAIN).astype(np.int8)


def split_events(log: Log, times: np.ndarray, reader: Reader) -> list[Rows]:
    """Give every event its part, and make the rows of what is kept out."""
    options, dropped = reader.options, reader.manifest.dropped
    if options.split_time:
        log.part = by_time(times, reader)
    elif (log.part == NONE).all():
        leave_one_out(log, options.validation, dropped)
    if options.validation and not (log.part == VALIDATION).any():
        keep_validation(log)
    kept_out = (TEST, VALIDATION) if options.validation else (TEST,)
    return [held_out(log, part, dropped) for part in kept_out]
