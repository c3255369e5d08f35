"""Layouts: which input column plays which part. Two ship in ``layouts/``; a user's own logs need a JSON, not code.

A part is what the tasks ask for (`PARTS`); its column has the part's own name unless the layout's ``columns`` says
otherwise. ``values`` replaces single values (names of interaction kinds, say), ``key`` names the parts that make a row
unique, ``sids`` and ``captions`` name the columns of the two item tables, the first that exists.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from onerec.errors import InputError
from onerec.run import read_json

FOLDER = Path(__file__).parent / "layouts"
LABELS = ("longview", "like", "follow", "forward", "not_interested")
_SIDES = ("hist", "target")

# Part to its kind: pids (a list of item ids, or one), mask (0 or 1 a list item), int, text. ``window`` numbers the rows of
# a user where a log gives several (data/adapters/leave_one_out.py).
PARTS: dict[str, str] = {
    "uid": "int",
    "split": "int",
    "window": "int",
    **{f"{side}_{domain}_pid": "pids" for side in _SIDES for domain in ("video", "ad", "goods")},
    **{f"{side}_video_{label}": "mask" for side in _SIDES for label in LABELS},
    "hist_longview_video_list": "pids",
    "inter_user_profile": "text",
    "inter_user_profile_with_sid": "text",
    "inter_keyword_to_items": "text",
    "reco_gsu_caption": "text",
    "reco_target_caption": "text",
    "reco_cot": "text",
    "target_pid": "int",
    "interaction_type": "text",
    "query": "text",
}
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

    def item_column(self, table: str, part: str, names: list[str]) -> str | None:
        """The column of ``sids`` or ``captions`` that plays ``part`` among ``names``; None where there is none."""
        wanted = getattr(self, table).get(part, (part,))
        return next((name for name in wanted if name in names), None)


def load_layout(name: str | Path) -> Layout:
    """Read a layout: ``release``, ``simple``, or the path of a JSON file of your own."""
    path = FOLDER / f"{name}.json" if (FOLDER / f"{name}.json").is_file() else Path(name)
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "is not a JSON object", f"an object with {', '.join(sorted(_KEYS))}")
    _known(path, value, _KEYS, "key")
    columns, key = value.get("columns", {}), value.get("key", ["uid", "split", "window"])
    _known(path, columns, set(PARTS), "part")
    _known(path, dict.fromkeys(key), set(PARTS), "part")
    _known(path, value.get("values", {}), set(PARTS), "part")
    tables = {}
    for table, parts in _ITEM_KEYS.items():
        given = value.get(table, {})
        _known(path, given, parts, "part")
        tables[table] = {p: (n,) if isinstance(n, str) else tuple(n) for p, n in given.items()}
    if not all(isinstance(column, str) for column in columns.values()):
        raise InputError(
            path, "maps a part to what is not a column's name", '{"columns": {"uid": "user_id"}}'
        )
    return Layout(
        tuple(key), dict(columns), dict(value.get("values", {})), tables["sids"], tables["captions"]
    )


def _known(path: Path, value: Any, known: set[str], what: str) -> None:
    if not isinstance(value, dict):
        raise InputError(path, f"{value!r} is not a JSON object", f"an object of {what}s")
    for name in value:
        if name not in known:
            raise InputError(path, f"has an unknown {what} {name}", f"one of {', '.join(sorted(known))}")


def check_type(path: Path, column: str, part: str, kind: pa.DataType) -> None:
    """Raise `InputError` where a column's Arrow type cannot play ``part`` at all."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    inner = kind.value_type if is_list else kind
    text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
    number = pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_null(inner)
    wanted = PARTS[part]
    if wanted == "int" and (is_list or not number):
        raise InputError(path, f"column {column} is {kind}", "integers are wanted")
    if wanted == "text" and (is_list or not (text or pa.types.is_null(inner))):
        raise InputError(path, f"column {column} is {kind}", "text is wanted")
    if wanted == "mask" and not (is_list and (number or pa.types.is_boolean(inner))):
        raise InputError(path, f"column {column} is {kind}", "a list of 0 and 1 is wanted")
    if wanted == "pids" and not (number or text):
        raise InputError(path, f"column {column} is {kind}", "a list of integers is wanted")
