"""Parquet reading and writing with the house's errors: whole files or streams, checked columns, atomic writes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from onerec.errors import InputError
from onerec.folders import atomic_path

# What a stream reads at a time of a column; without it all that a row group has of the column, which may be gigabytes.
_STREAM_BYTES = 4 << 20


def open_parquet(
    path: str | os.PathLike[str], columns: Sequence[str] = (), stream: bool = False
) -> pq.ParquetFile:
    """Open one Parquet file; raises `InputError` where it is missing, cut short, or lacks one of ``columns``.

    ``stream``: read with a small buffer, so that memory does not grow with the row groups.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(path, "no such file", "give the path of a Parquet file")
    if path.is_dir():
        raise InputError(path, "is a folder", "give the path of a Parquet file")
    try:
        options = {"buffer_size": _STREAM_BYTES, "pre_buffer": False} if stream else {}
        file = pq.ParquetFile(path, **options)
    except pa.ArrowInvalid as error:
        raise InputError(
            path,
            f"is not a whole Parquet file ({str(error).splitlines()[0]})",
            "write it again; it may be cut short",
        ) from None
    names = file.schema_arrow.names
    missing = [column for column in columns if column not in names]
    if missing:
        raise InputError(path, f"has no column {', '.join(missing)}", f"it has {', '.join(names)}")
    return file


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
    allow_empty: bool = False,
) -> pa.Table:
    """Read the ``columns`` (all where none is named) and those of ``optional`` that exist.

    Raises `InputError` where the file is missing, cut short, lacks a column, or is empty.
    """
    file = open_parquet(path, columns)
    names = file.schema_arrow.names
    wanted = [*columns, *(name for name in optional if name in names)] if columns or optional else None
    try:
        table = file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            path, f"cannot be read ({str(error).splitlines()[0]})", "write it again; it may be damaged"
        ) from None
    if not allow_empty and table.num_rows == 0:
        raise InputError(path, "is an empty table", "give at least one row")
    return table


def iter_batches(
    path: str | os.PathLike[str], columns: Sequence[str], optional: Sequence[str] = (), batch_size: int = 4096
) -> Iterator[pa.RecordBatch]:
    """Stream the named columns of a Parquet file in batches of at most ``batch_size`` rows."""
    file = open_parquet(path, columns, stream=True)
    names = file.schema_arrow.names
    wanted = [*columns, *(name for name in optional if name in names)]
    try:
        yield from file.iter_batches(batch_size=batch_size, columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(
            path, f"cannot be read ({str(error).splitlines()[0]})", "write it again; it may be damaged"
        ) from None


def list_parquet(path: str | os.PathLike[str]) -> list[Path]:
    """The Parquet files that ``path`` names: a file, a folder (its ``*.parquet``, sorted), or a glob pattern."""
    text = str(path)
    if os.path.isdir(text):
        files = sorted(Path(text).glob("*.parquet"))
    elif glob.has_magic(text):
        files = sorted(Path(name) for name in glob.glob(text, recursive=True))
    else:
        files = [Path(text)] if os.path.exists(text) else []
    if not files:
        raise InputError(
            path, "names no Parquet file", "give a file, a folder of *.parquet, or a pattern that matches"
        )
    return files


def count_rows(path: str | os.PathLike[str]) -> int:
    """Rows of a Parquet file, from its footer alone."""
    return open_parquet(path).metadata.num_rows


def write_table(path: str | os.PathLike[str], table: pa.Table) -> None:
    """Write ``table`` atomically (zstd). The bytes depend on the table alone."""
    write_batches(path, table.schema, [table])


def write_batches(
    path: str | os.PathLike[str], schema: pa.Schema, tables: Iterable[pa.Table | pa.RecordBatch]
) -> int:
    """Write tables or batches of one ``schema`` to one file atomically; returns the rows written."""
    rows = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for table in tables:
            if isinstance(table, pa.RecordBatch):
                writer.write_batch(table)
            else:
                writer.write_table(table)
            rows += table.num_rows
    return rows
