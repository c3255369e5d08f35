"""What every adapter shares: a user's events to rows of the release layout, leave one out, and the release's files.

The last item is the test target (split 1), with ``validation`` the one before it is the validation target (split 2),
and training rows (split 0) see neither. The latest training items, at most ``n_targets``, are the first row's targets;
with ``windows`` above 1 the items before those are the next row's, and so on, so that a short log teaches every item
once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from data.onerec_data.wording import language_of
from onerec.flags import COUNT, COUNT_OR_ALL, ArgumentParser, integer
from onerec.parquet import write_table
from onerec.run import Manifest

T = TypeVar("T")
TRAIN, TEST, VALIDATION = 0, 1, 2
# What of a rating in stars becomes a mask; it has no counterpart of a forward.
MASKS = {
    "longview": lambda stars: stars >= 3,
    "like": lambda stars: stars >= 4,
    "follow": lambda stars: stars >= 5,
    "forward": lambda stars: False,
    "not_interested": lambda stars: stars <= 2,
}
_CAPTIONS = pa.schema([("pid", pa.int64()), ("dense_caption", pa.string()), ("tags", pa.list_(pa.string()))])


def add_arguments(parser: ArgumentParser, n_targets: int, validation: bool) -> None:
    """The flags of the split, with an adapter's defaults."""
    parser.add_argument("--n_targets", type=COUNT, default=n_targets, help="targets of a training row, at most")
    parser.add_argument(
        "--windows",
        type=COUNT_OR_ALL,
        default=1,
        help="training rows a user, at most (-1: until every item is a target)",
    )
    parser.add_argument(
        "--validation",
        type=integer(0, 1),
        default=int(validation),
        help="1: the last item but one is kept for validation (split 2)",
    )


def texts_of(table: Mapping[str, Any], prompts: str) -> Mapping[str, str]:
    """The texts of an adapter's ``table`` in the language of a set of prompts; in English where it has not that one."""
    return table.get(language_of(prompts), table["en"])


def least_items(validation: bool) -> int:
    """Items that a user needs: a history, a training target, and what is kept out."""
    return 4 if validation else 3


def split_rows(
    items: Sequence[T], n_targets: int, windows: int, validation: bool
) -> Iterator[tuple[int, int, Sequence[T], Sequence[T]]]:
    """(split, window, history, targets) of one user's ``items``, oldest first; windows count from the latest."""
    train = items[: -2 if validation else -1]
    end, window = len(train), 0
    while end > 1 and window != windows:
        start = max(1, end - n_targets)
        yield TRAIN, window, train[:start], train[start:end]
        end, window = start, window + 1
    yield TEST, 0, items[:-1], items[-1:]
    if validation:
        yield VALIDATION, 0, items[:-2], items[-2:-1]


def video_columns(history: Sequence[tuple[int, float]], target: Sequence[tuple[int, float]]) -> dict[str, list[int]]:
    """pids of (item, stars), and masks unless stars are NaN, on both sides of a row."""
    row: dict[str, list[int]] = {}
    for side, events in (("hist", history), ("target", target)):
        row[f"{side}_video_pid"] = [item for item, _ in events]
        if not any(math.isnan(stars) for _, stars in [*history, *target]):
            for name, rule in MASKS.items():
                row[f"{side}_video_{name}"] = [int(rule(stars)) for _, stars in events]
    return row


def release_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the release: lists of int64, texts, and numbers int64."""
    fields = []
    for name, value in rows[0].items():
        kind = pa.string() if isinstance(value, str) else pa.int64()
        fields.append((name, kind if isinstance(value, str | int) else pa.list_(pa.int64())))
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def caption_table(pids: Sequence[int] | np.ndarray, captions: Sequence[str], tags: Sequence[list[str]]) -> pa.Table:
    """The release's captions: ``pid`` int64, ``dense_caption`` string, ``tags`` lists of strings."""
    return pa.table({"pid": pids, "dense_caption": captions, "tags": tags}, schema=_CAPTIONS)


def write_release(folder: Path, tables: Mapping[str, pa.Table], manifest: Manifest) -> Path:
    """Write ``tables`` by name into the folder's onerec_data, which it returns, and the manifest beside it."""
    out = folder / "onerec_data"
    for name, table in tables.items():
        write_table(out / f"{name}.parquet", table)
        manifest.output(out / f"{name}.parquet", table.num_rows)
    manifest.write(folder)
    return out
