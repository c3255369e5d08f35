"""Values of a table's columns as text: ids to the letter, lists within text, JSON."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from onerec.errors import InputError
from onerec.parquet import Kind, converted, is_list, plain

_TEXTS = pa.list_(pa.string())
_QUOTED = r"""(?:'[^']*'|"[^"]*")"""


def as_text(values: pa.Array | pa.ChunkedArray, path: Path, name: str) -> pa.Array:
    """A column as text [string], lists joined by ", "; empty text is null. Whole numbers stay whole.

    Raises `InputError` where it is of another type, or holds bytes that are no text.
    """
    as_uuid = values.type == pa.uuid()
    values = plain(values)
    kind = values.type
    if pa.types.is_floating(kind):  # pandas makes floats of whole numbers where one is missing
        values = pc.if_else(pc.is_nan(values), None, values)
    if pa.types.is_floating(kind) and not pc.any(pc.not_equal(values, pc.floor(values))).as_py():
        values = values.cast(pa.int64(), safe=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return values.cast(pa.string())
    if pa.types.is_temporal(kind):
        return values.cast(pa.string())
    if is_list(kind) and "struct<" in str(kind):
        values = pa.array([None if value is None else list(leaves(value)) for value in values.to_pylist()], _TEXTS)
    try:
        found, wrong = converted(values, Kind.UUID if as_uuid else Kind.SHOWN)
    except TypeError:
        raise InputError(path, f"column {name} is {kind}", "text, numbers or lists of them") from None
    if wrong.any():
        what = f"column {name} of a row holds {values[int(np.flatnonzero(wrong)[0])].as_py()!r:.60}"
        raise InputError(path, what, "UTF-8 text, numbers or lists of them")
    return pc.if_else(pc.equal(found, ""), None, found)


def lists_of_text(values: pa.Array, path: Path, name: str, known: pa.Array) -> list[list[str]]:
    """A column of lists, or of text that is one (``[1, 2]``, ``['a', 'b']``, ``a b``, ``a,b``), as lists of ids.

    A text that is one of the ``known`` ids is that one, whatever stands in it.
    """
    values = plain(values)
    if is_list(values.type):
        flat = as_text(values.flatten(), path, name).to_pylist()
        lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
        ends = np.cumsum(lengths).tolist()
        return [[v for v in flat[end - n : end] if v] for end, n in zip(ends, lengths.tolist(), strict=True)]
    found = as_text(values, path, name)
    whole = pc.is_in(found, known).to_pylist()
    return [[text] if one else list_of_text(text or "") for text, one in zip(found.to_pylist(), whole, strict=True)]


def list_of_text(text: str) -> list[str]:
    """The parts of one text that is a list."""
    text = text.strip()
    if (found := list_in(text)) is not None:
        return found
    text = text.strip("[]") if text.startswith("[") else text
    between = r"\s*[,;|]\s*" if re.search("[,;|]", text) else r"\s+"
    return [part for part in re.split(between, text) if part]


def list_in(text: str) -> list[str] | None:
    """The parts of a text that is a list as JSON, Python or numpy writes it; None for every other, as ``[New] Pen``."""
    if not text.startswith("["):
        return None
    value = parsed(text)
    if value is None:
        if re.fullmatch(rf"\[\s*{_QUOTED}(\s+{_QUOTED})+\s*\]", text):  # numpy's, which Python reads as one long text
            return [part[1:-1] for part in re.findall(_QUOTED, text)]
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
    return list(leaves(value)) if isinstance(value, list) else None


def leaves(value: Any) -> Iterator[str]:
    """What lists within lists hold, as text; of an object its texts: ``{"id": 7, "name": "Art"}`` is Art."""
    if isinstance(value, dict):
        yield from (part for part in value.values() if isinstance(part, str))
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part)
    elif value is not None:
        yield str(value)


def parsed(text: bytes | str) -> Any:
    """A JSON value; None where it is none.

    NaN, which Python and pandas write, is null; a mark of byte order is legal.
    """
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return orjson.loads(orjson.dumps(json.loads(text, parse_constant=lambda name: None)))
    except (ValueError, TypeError, RecursionError):
        return None
