"""Mixing sources of records into shuffled shards: which files, how many rows of each, in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onerec.errors import InputError
from onerec.files import FILE_LIST, shard_name
from onerec.parquet import list_parquet, open_parquet
from onerec.records import SCHEMA, check_record
from onerec.run import Manifest, atomic_path, read_json, write_json

CONFIG_KEYS = {"sources", "rows_per_file", "comment"}
SOURCE_KEYS = {"name", "path", "weight", "max_rows"}
_KEY_COLUMNS = ("uuid", "source", "metadata")


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that belong to the mix and how much of them: ``weight`` a share of the rows (0 to 1), ``max_rows`` a cap."""

    name: str
    files: list[Path]
    weight: float
    max_rows: int


def read_config(path: Path, base: Path) -> tuple[list[Source], int]:
    """The sources of a JSON config (paths relative to ``base``) and the rows of a file; checks every key."""
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("sources"), list) or not value["sources"]:
        raise InputError(path, "has no list of sources", '{"sources": [{"name": …, "path": …}]}')
    _check_keys(path, value, CONFIG_KEYS)
    sources = []
    for item in value["sources"]:
        _check_keys(path, item, SOURCE_KEYS)
        for key in ("name", "path"):
            if not isinstance(item.get(key), str):
                raise InputError(path, f"a source has no {key}", "every source has a name and a path")
        weight, cap = item.get("weight", 1.0), item.get("max_rows", -1)
        if not isinstance(weight, int | float) or not 0 < weight <= 1:
            raise InputError(
                path, f"source {item['name']} has weight {weight}", "over 0 and at most 1; uuids stay unique"
            )
        if not isinstance(cap, int) or (cap < 1 and cap != -1):
            raise InputError(
                path, f"source {item['name']} has max_rows {cap}", "a positive number, or -1 for all"
            )
        sources.append(Source(item["name"], list_parquet(base / item["path"]), float(weight), cap))
    return sources, int(value.get("rows_per_file", 1000))


def _check_keys(path: Path, value: dict[str, Any], known: set[str]) -> None:
    for key in value:
        if key not in known:
            raise InputError(path, f"has an unknown key {key}", f"one of {', '.join(sorted(known))}")


def load_source(source: Source, seed: int, manifest: Manifest) -> pa.Table:
    """The chosen rows of a source in the record schema; bad ones and doubles dropped and counted."""
    tables = []
    for file in source.files:
        reader = open_parquet(file, _KEY_COLUMNS)
        names = reader.schema_arrow.names
        if "segments" not in names and "messages" not in names:
            raise InputError(file, "holds no records", "a file with segments or messages belongs to the mix")
        table = reader.read(columns=[name for name in SCHEMA.names if name in names])
        for name in SCHEMA.names:
            if name not in names:
                table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
        tables.append(table.select(SCHEMA.names).cast(pa.schema([(n, pa.string()) for n in SCHEMA.names])))
        manifest.input(file, table.num_rows)
    table = pa.concat_tables(tables)
    rows = round(table.num_rows * source.weight)
    rows = min(rows, source.max_rows) if source.max_rows != -1 else rows
    if rows < table.num_rows:
        rng = np.random.default_rng([seed, *source.name.encode()])
        table = table.take(pa.array(np.sort(rng.choice(table.num_rows, rows, replace=False))))
    reasons = [check_record(row) for row in table.to_pylist()]
    for reason in reasons:
        if reason:
            manifest.drop(reason)
    return table.filter(pa.array([reason is None for reason in reasons]))


def mix(sources: list[Source], seed: int, manifest: Manifest, max_bad_ratio: float) -> pa.Table:
    """All sources' rows, globally shuffled; a uuid that comes again is dropped and counted."""
    tables = []
    for source in sources:
        table = load_source(source, seed, manifest)
        manifest.extra.setdefault("rows_by_source", {})[source.name] = table.num_rows
        tables.append(table)
    bad = sum(manifest.dropped.values())
    table = pa.concat_tables(tables)
    manifest.check_bad_ratio(sources[0].files[0], bad, table.num_rows + bad, max_bad_ratio)
    first = ~table["uuid"].to_pandas().duplicated().to_numpy()
    manifest.drop("uuid stands twice", int((~first).sum()))
    table = table.filter(pa.array(first))
    if not table.num_rows:
        raise InputError(sources[0].files[0], "and the other sources give no row", "at least one good record")
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows))).cast(SCHEMA)


def write_shards(table: pa.Table, folder: Path, rows_per_file: int, manifest: Manifest) -> None:
    """``part-00000-of-000NN.parquet`` and ``file_list.json``, the whole folder replaced at once."""
    count = -(-table.num_rows // rows_per_file)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        names = [shard_name(i, count) for i in range(count)]
        for i, name in enumerate(names):
            shard = table.slice(i * rows_per_file, rows_per_file)
            pq.write_table(shard, temporary / name, compression="zstd")
            manifest.output(folder / name, shard.num_rows)
        write_json(temporary / FILE_LIST, names)
        manifest.write(temporary)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The record rows of the Parquet files that ``path`` names."""
    for file in list_parquet(path):
        yield from open_parquet(file, _KEY_COLUMNS).read().to_pylist()
