"""A log of events, a row a user, an item and a time, as a `Log`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from data.own.reader import NONE, UNKNOWN, Columns, Read, Reader, split_events
from data.own.rows import Log
from onerec.run import progress


def read_events(columns: Sequence[tuple[Columns, int | None]], reader: Reader) -> Read:
    """The log of all files, a row an event; raises `InputError` where it cannot be used.

    Events of one time stay in the order of the files.
    """
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
    reader.finish(rows + sum(each.file.bad.total() for each, _ in columns))
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
    return Read(log, names, split_events(log, values["time"], reader))


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
