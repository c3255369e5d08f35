"""The one reader and the one writer of Parquet files.

A column is asked for as a `Kind`; how a file stores it (width and sign of integers, decimals, whole floats,
categories, views, large or fixed-size lists, bytes that are UTF-8, structs where JSON is wanted) is converted here,
without loss, or refused by name. Null stays null, and no id passes through a float.
"""

from __future__ import annotations

import decimal
import enum
import glob
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from onerec.errors import InputError, reading
from onerec.folders import atomic_path


class Kind(enum.Enum):
    """What a column is read as; the value says it in an error. Arrow types that come out in brackets."""

    INT = "whole numbers of at most 64 bits"  # [int64]
    TEXT = "text"  # [string]
    UUID = "uuids as text or as 16 bytes"  # [string]
    JSON = "JSON as text, or structs and lists"  # [string]
    SHOWN = "text, numbers or lists of them"  # [string]
    INTS = "lists of whole numbers"  # [large_list<int64>]
    FLOATS = "lists of floats"  # [as stored]


Columns = Sequence[str] | Mapping[str, Kind]
Data = pa.Table | pa.RecordBatch
_DIGITS = r"^(0|-?[1-9]\d{0,17})$"  # of an id as text: one text a number, so that no two ids become one


def whole_number(value: object) -> int:
    """A value of JSON as an id: an integer of 64 bits, or a float that is surely one; raises ValueError otherwise."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{_short(value)} is not a whole number of at most 64 bits")
    return value


def plain(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The values without what is only storage: chunks, extension types, categories, views."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
        values = pa.concat_arrays(values.chunks) if isinstance(values, pa.ChunkedArray) else values
    if isinstance(values, pa.ExtensionArray):
        return plain(values.storage)
    if pa.types.is_dictionary(values.type):
        return plain(values.dictionary_decode())
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return values.cast(views[values.type]) if values.type in views else values


def is_list(kind: pa.DataType) -> bool:
    """Whether an Arrow type is a list, of whatever sort."""
    sorts = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    return any(getattr(pa.types, f"is_{sort}")(kind) for sort in sorts)


def list_parts(values: pa.Array) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """(the items of all rows, offsets int64 [n + 1] of each row's, null rows); raises TypeError for what is no list."""
    null = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_null(values.type):
        return values.slice(0, 0), np.zeros(len(values) + 1, np.int64), null
    if not is_list(values.type):
        raise TypeError
    lengths = pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False)
    return plain(values.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), null


def integers(values: pa.Array, digits: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int64 [n], where there is a value, where one is no whole number of 64 bits; 0 there). Never through a float.

    A float counts below what its type tells from its neighbours. ``digits``: text counts too, as a number is written.
    Raises TypeError for other types.
    """
    values = plain(values)
    kind, valid = values.type, values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        found = values.fill_null(0).to_numpy(zero_copy_only=False)
        good = valid & (found <= np.iinfo(np.int64).max)
    elif pa.types.is_floating(kind):
        found = values.to_numpy(zero_copy_only=False)
        exact = 2.0 ** (np.finfo(found.dtype).nmant + 1)
        good = valid & (np.abs(found) < exact) & (found == np.floor(found))
    elif pa.types.is_decimal(kind):
        found = np.array(values.to_pylist(), object)
        whole = (value is not None and value == value.to_integral_value() for value in found)
        good = np.array([fits and -(2**63) <= value < 2**63 for value, fits in zip(found, whole, strict=True)], bool)
    elif digits and _is_text(kind):
        text = pc.utf8_trim_whitespace(texts(values)[0])
        written = pc.match_substring_regex(text, _DIGITS).fill_null(False)
        found = pc.if_else(written, text, "0").cast(pa.int64()).to_numpy()
        good = written.to_numpy(zero_copy_only=False)
    elif pa.types.is_null(kind):
        found, good = np.zeros(len(values), np.int64), valid
    else:
        raise TypeError
    out = np.zeros(len(values), np.int64)
    out[good] = found[good]
    return out, good, valid & ~good


def texts(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """(string [n], where bytes are not UTF-8; null there); raises TypeError for what is neither text nor bytes."""
    values = plain(values)
    if not (_is_text(values.type) or _is_bytes(values.type) or pa.types.is_null(values.type)):
        raise TypeError
    try:
        values.validate(full=True)  # a file may call anything a string
        return values.cast(pa.string()), np.zeros(len(values), bool)
    except pa.ArrowInvalid:
        return _each(values.cast(pa.large_binary()), bytes.decode)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def converted(values: pa.Array | pa.ChunkedArray, kind: Kind) -> tuple[pa.Array, np.ndarray]:
    """(``values`` as ``kind``, rows whose value cannot be that, null now); raises TypeError where the type cannot."""
    values = plain(values)
    stored = values.type
    if kind is Kind.INT:
        found, good, wrong = integers(values)
        return pa.array(found, mask=~good), wrong
    if kind is Kind.INTS:
        items, offsets, null = list_parts(values)
        found, good, wrong = integers(items)
        row = np.repeat(np.arange(len(null)), np.diff(offsets))
        bad = np.bincount(row[wrong], minlength=len(null)) > 0
        lists = pa.LargeListArray.from_arrays(offsets, pa.array(found, mask=~good), mask=pa.array(null | bad))
        return lists, bad
    if kind is Kind.FLOATS:
        items, _, _ = list_parts(values)
        if not (pa.types.is_floating(items.type) or pa.types.is_null(items.type)):
            raise TypeError
        return values, np.zeros(len(values), bool)
    if kind is Kind.UUID and pa.types.is_fixed_size_binary(stored) and stored.byte_width == 16:
        return _each(values, lambda value: str(uuid.UUID(bytes=value)))
    if kind is Kind.JSON and (pa.types.is_struct(stored) or pa.types.is_map(stored) or is_list(stored)):
        return _each(values, _json)
    if kind is Kind.SHOWN and not (_is_text(stored) or _is_bytes(stored) or pa.types.is_null(stored)):
        if pa.types.is_nested(stored) and not is_list(stored):
            raise TypeError
        return _each(values, _as_shown)
    return texts(values)


def _each(values: pa.Array, change: Callable[[Any], str]) -> tuple[pa.Array, np.ndarray]:
    found, wrong = [], np.zeros(len(values), bool)
    for row, value in enumerate(values):
        try:
            found.append(change(value.as_py(maps_as_pydicts="strict")) if value.is_valid else None)
        except (ValueError, TypeError, KeyError, RecursionError):
            found.append(None)
            wrong[row] = True
    return pa.array(found, pa.string()), wrong


def _json(value: Any) -> str:
    return json.dumps(_bare(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_leaf)


def _bare(value: Any) -> Any:
    """Without the keys that are null: a struct has every key of every row."""
    if isinstance(value, dict):
        return {key: _bare(inner) for key, inner in value.items() if inner is not None}
    return [_bare(inner) for inner in value] if isinstance(value, list) else value


def _leaf(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, decimal.Decimal):
        return str(value)
    if value == value.to_integral_value():
        return int(value)
    if float(value).is_integer():
        raise ValueError  # a float would make it whole
    return float(value)


def _as_shown(value: Any) -> str:
    if isinstance(value, dict):
        raise TypeError
    if isinstance(value, list):
        return ", ".join(_as_shown(part) for part in value if part is not None)
    return str(_leaf(value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def typed(data: Data, columns: Sequence[Columns], path: object, first_row: int = 0, strict: bool = True) -> Data:
    """``data`` with its columns as ``columns`` ask; a value that does not fit is refused, or null unless ``strict``."""
    asked = [pair for some in columns if isinstance(some, Mapping) for pair in some.items()]
    for name, kind in asked:
        if name not in data.schema.names:
            continue
        right = f"{kind.value} are wanted"
        with reading(path):
            try:
                values, wrong = converted(data.column(name), kind)
            except TypeError:
                raise InputError(path, f"column {name} is {data.schema.field(name).type}", right) from None
        if strict and wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            try:
                value = _short(data.column(name)[row].as_py())
            except ValueError:
                value = "text that is not UTF-8"
            raise InputError(path, f"column {name} of row {first_row + row} is {value}", right)
        data = data.set_column(data.schema.get_field_index(name), name, values)
    return data


def column_types(path: str | os.PathLike[str]) -> dict[str, pa.DataType]:
    """Column to Arrow type of a file."""
    schema = open_parquet(path).schema_arrow
    return dict(zip(schema.names, schema.types, strict=True))


# What a stream reads at a time of a column; without it all that a row group has of the column, which may be gigabytes.
_STREAM_BYTES = 4 << 20


def open_parquet(path: str | os.PathLike[str], columns: Sequence[str] = (), stream: bool = False) -> pq.ParquetFile:
    """Open one Parquet file; raises `InputError` where it is missing, cut short, or lacks one of ``columns``.

    ``stream``: read with a small buffer, so that memory does not grow with the row groups.
    """
    path = Path(path)
    if not path.exists() or path.is_dir():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(path, what, "give the path of a Parquet file")
    with reading(path, "is not a whole Parquet file", "write it again; it may be cut short"):
        file = pq.ParquetFile(path, **({"buffer_size": _STREAM_BYTES, "pre_buffer": False} if stream else {}))
        names = file.schema_arrow.names
    if missing := [column for column in columns if column not in names]:
        raise InputError(path, f"has no column {', '.join(missing)}", f"it has {', '.join(names)}")
    if twice := [column for column in columns if names.count(column) > 1]:
        raise InputError(path, f"has the column {twice[0]} twice", "a name a column")
    return file


def read_table(
    path: str | os.PathLike[str],
    columns: Columns = (),
    optional: Columns = (),
    allow_empty: bool = False,
    strict: bool = True,
) -> pa.Table:
    """Read the ``columns`` (all where none is named) and those of ``optional`` that exist, as `typed` gives them.

    Raises `InputError` where the file is missing, cut short, lacks a column, is empty, or a value is not of its kind.
    """
    file = open_parquet(path, columns)
    names = file.schema_arrow.names
    with reading(path):
        table = file.read(columns=[n for n in [*columns, *optional] or names if n in names])
    if not allow_empty and table.num_rows == 0:
        raise InputError(path, "is an empty table", "give at least one row")
    return typed(table, (columns, optional), path, 0, strict)


def iter_batches(
    path: str | os.PathLike[str],
    columns: Columns,
    optional: Columns = (),
    batch_size: int = 4096,
    strict: bool = True,
    row_groups: Sequence[int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream the named columns of a Parquet file in batches of at most ``batch_size`` rows, as `typed` gives them.

    ``row_groups``: those that are read, by number; all where not given.
    """
    file = open_parquet(path, columns, stream=True)
    wanted, row = [n for n in (*columns, *optional) if n in file.schema_arrow.names], 0
    with reading(path):
        for batch in file.iter_batches(batch_size=batch_size, columns=wanted, row_groups=row_groups):
            yield typed(batch, (columns, optional), path, row, strict)
            row += batch.num_rows


def list_parquet(path: str | os.PathLike[str]) -> list[Path]:
    """The Parquet files of a path, sorted: a file, a folder (its ``*.parquet``, no hidden ones), or a glob pattern."""
    found = Path(path).glob("*.parquet") if os.path.isdir(path) else matching(path)
    files = sorted(file for file in found if not (os.path.isdir(path) and file.name.startswith((".", "_"))))
    if not files:
        raise InputError(path, "names no Parquet file", "give a file, a folder of *.parquet, or a pattern that matches")
    return files


def matching(pattern: str | os.PathLike[str]) -> list[Path]:
    """What a path or a glob pattern names, sorted; a name that exists is taken as it is, brackets and all."""
    parts, known = list(Path(pattern).parts), Path()
    while parts and (known / parts[0]).exists():
        known /= parts.pop(0)
    if not parts:
        return [known]
    return sorted(Path(name) for name in glob.glob(os.path.join(glob.escape(str(known)), *parts), recursive=True))


def count_rows(path: str | os.PathLike[str]) -> int:
    """Rows of a Parquet file, from its footer alone."""
    return open_parquet(path).metadata.num_rows


def embedding_table(pids: Sequence[int] | np.ndarray, vectors: np.ndarray) -> pa.Table:
    """Columns ``pid`` int64 and ``embedding``, lists of the width of ``vectors`` [n, dim] and of their type."""
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table({"pid": pa.array(pids, pa.int64()), "embedding": lists})


def write_table(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write ``table`` atomically (zstd). The bytes depend on the table alone."""
    write_batches(path, table.schema, [table])


def write_batches(path: str | os.PathLike[str], schema: pa.Schema, tables: Iterable[pa.Table | pa.RecordBatch]) -> int:
    """Write tables or batches of one ``schema`` to one file atomically; returns the rows written."""
    rows = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            writer.write(table)
            rows += table.num_rows
    return rows
