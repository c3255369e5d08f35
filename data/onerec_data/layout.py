"""Layouts: which input column plays which part. Two ship in ``layouts/``; a user's own logs need a JSON, not code.

A part is what the tasks ask for (`PARTS`); its column has the part's own name unless the layout's ``columns`` says
otherwise. ``values`` replaces single values (names of interaction kinds, say), ``key`` names the parts that make a row
unique, ``sids`` and ``captions`` name the columns of the two item tables, the first that exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onerec.errors import InputError
from onerec.parquet import column_types
from onerec.run import read_json

FOLDER = Path(__file__).parent / "layouts"
LABELS = ("longview", "like", "follow", "forward", "not_interested")
_SIDES = ("hist", "target")

# Part to its kind: pids (a list of item ids, or one), mask (0 or 1 a list item), int, text. ``window`` numbers the rows
# of a user where a log gives several (data/adapters/release.py).
PARTS: dict[str, str] = {
    "uid": "int",
    "split": "int",
    "window": "int",
    **{f"{side}_{domain}_pid": "pids" for side in _SIDES for domain in ("video", "ad", "goods")},
    **{f"{side}_video_{label}": "mask" for side in _SIDES for label in LABELS},
    "hist_longview_video_list": "pids",
    **dict.fromkeys(("inter_user_profile", "inter_user_profile_with_sid", "inter_keyword_to_items"), "text"),
    **dict.fromkeys(("reco_gsu_caption", "reco_target_caption", "reco_cot"), "text"),
    "target_pid": "int",
    "interaction_type": "text",
    "query": "text",
}
DEFAULT_KEY = ["uid", "split", "window"]
# What an error says of a column that cannot play a part.
WANTED = {"int": "integers are", "text": "text is", "mask": "a list of 0 and 1 is", "pids": "a list of integers is"}
_KEYS = {"comment", "key", "columns", "values", "sids", "captions"}
_ITEM_KEYS = {"sids": {"pid", "codes"}, "captions": {"pid", "caption", "tags"}}


@dataclasses.dataclass(frozen=True)
class Layout:
    """A column map; see the module's docstring."""

    key: tuple[str, ...]
    columns: dict[str, str]
    values: dict[str, dict[str, Any]]
    sids: dict[str, tuple[str, ...]]
    captions: dict[str, tuple[str, ...]]

    def column(self, part: str) -> str:
        """The input column of a part."""
        return self.columns.get(part, part)

    def item_column(self, table: str, part: str, names: Sequence[str]) -> str | None:
        """The column of ``sids`` or ``captions`` that plays ``part`` among ``names``; None where there is none."""
        return next((name for name in getattr(self, table).get(part, (part,)) if name in names), None)

    def item_columns(self, table: str, parts: Sequence[str], path: Path) -> list[str]:
        """The columns of an item table's file that play ``parts``; raises `InputError` where there is none."""
        names = list(column_types(path))
        for part in parts:
            if self.item_column(table, part, names) is None:
                wanted = " or ".join(getattr(self, table).get(part, (part,)))
                raise InputError(path, f"has no column {wanted}", f"it has {', '.join(names)}")
        return [self.item_column(table, part, names) for part in parts]


def load_layout(name: str | Path) -> Layout:
    """Read a layout: ``release``, ``simple``, or the path of a JSON file of your own."""
    path = FOLDER / f"{name}.json" if (FOLDER / f"{name}.json").is_file() else Path(name)
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "is not a JSON object", f"an object with {', '.join(sorted(_KEYS))}")
    _known(path, value, _KEYS, "key")
    columns, values, key = value.get("columns", {}), value.get("values", {}), value.get("key", DEFAULT_KEY)
    if not _names(key):
        raise InputError(path, f"has the key {key!r}", '["uid", "split"], parts that make a row unique')
    for parts in (columns, values, dict.fromkeys(key)):
        _known(path, parts, set(PARTS), "part")
    for part, new in values.items():
        if not (isinstance(new, dict) and all(isinstance(value, str | int) for value in new.values())):
            raise InputError(path, f"replaces values of {part} by {new!r}", '{"split": {"train": 0}}')
    tables = {}
    for table, parts in _ITEM_KEYS.items():
        _known(path, given := value.get(table, {}), parts, "part")
        lists = {part: [names] if isinstance(names, str) else names for part, names in given.items()}
        if not all(map(_names, lists.values())):
            raise InputError(path, f"{table} maps a part to what is no column's name", '{"pid": ["pid", "item"]}')
        tables[table] = {part: tuple(names) for part, names in lists.items()}
    if not _names(list(columns.values())):
        raise InputError(path, "maps a part to what is not a column's name", '{"columns": {"uid": "user_id"}}')
    return Layout(tuple(key), dict(columns), values, **tables)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _known(path: Path, value: Any, known: set[str], what: str) -> None:
    if not isinstance(value, dict):
        raise InputError(path, f"{value!r} is not a JSON object", f"an object of {what}s")
    if unknown := [name for name in value if name not in known]:
        raise InputError(path, f"has an unknown {what} {unknown[0]}", f"one of {', '.join(sorted(known))}")
