"""Mixing sources of records: which files, how many rows of each; checked and streamed."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.sampling import batch_rows
from onerec.errors import InputError
from onerec.flags import COUNT, COUNT_OR_ALL, SHARE_ABOVE_0
from onerec.parquet import Kind, column_types, iter_batches, list_parquet, open_parquet
from onerec.records import check_columns, record_batches, uid_of
from onerec.run import Manifest, read_json
from onerec.tasks import TASKS, made

CONFIG_KEYS = {"sources", "folders", "rows_per_file", "exclude_users", "comment"}
SOURCE_KEYS = {"name", "tasks", "path", "weight", "max_rows", "optional"}
KEY_COLUMNS = ("uuid", "source", "metadata")
_TEXT_COLUMNS = ("segments", "messages")


@dataclasses.dataclass(frozen=True)
class RecordFile:
    """A file of records: rows, and bytes of its columns before compression."""

    path: Path
    rows: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that belong to the mix and how much of them.

    ``weight`` is a share of the rows (0 to 1), ``max_rows`` a cap, both of what is left once the rows of the
    ``excluded`` users are taken out.
    """

    name: str
    files: list[RecordFile]
    weight: float = 1.0
    max_rows: int = -1
    excluded: frozenset[int | str] = frozenset()

    @cached_property
    def kept(self) -> list[np.ndarray | None]:
        """Of each file, as packed bits, the rows that are of no excluded user; None where nobody is excluded.

        Rows without a user are kept. Raises `InputError` where users are ids of another kind than the excluded ones.
        """
        if not self.excluded:
            return [None] * len(self.files)
        kinds, kept = set[type](), []
        for file in self.files:
            rows = [np.zeros(0, bool)]
            for users in users_of(file.path):
                kinds |= set(map(type, users)) - {type(None)}
                rows.append(np.array([user not in self.excluded for user in users], bool))
            kept.append(np.packbits(np.concatenate(rows)))
        if kinds and kinds.isdisjoint(map(type, self.excluded)):
            words = {int: "numbers", str: "text"}
            others = words[type(next(iter(self.excluded)))]
            what = f"names its users as {words[kinds.pop()]}, exclude_users as {others}"
            raise InputError(self.files[0].path, what, "the same ids in both")
        return kept

    @cached_property
    def total(self) -> int:
        """Rows of the files that are of no excluded user."""
        pairs = zip(self.files, self.kept, strict=True)
        return sum(file.rows if kept is None else int(np.unpackbits(kept).sum()) for file, kept in pairs)

    @property
    def wanted(self) -> int:
        """Rows that the mix takes."""
        rows = round(self.total * self.weight)
        return rows if self.max_rows == -1 else min(rows, self.max_rows)

    @property
    def bytes(self) -> float:
        """Bytes of record text that the mix takes, estimated."""
        return sum(file.bytes for file in self.files) * self.wanted / max(self.total, 1)


def read_config(
    path: Path, base: Path, manifest: Manifest, folders: Mapping[str, str] | None = None
) -> tuple[list[Source], int]:
    """The sources of a JSON config (paths relative to ``base``) and the rows of a file; checks every key.

    ``folders`` go before the folders of those names that the config says itself. An ``optional`` source that is not
    there, and a task of ``tasks`` without records, is left out: one line and the manifest name them. A folder that
    ``folders`` name must be there. Raises `InputError` for any other missing source, and where none is left.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("sources"), list) or not value["sources"]:
        raise InputError(path, "has no list of sources", '{"sources": [{"name": …, "path": …}]}')
    _check_keys(path, value, CONFIG_KEYS)
    excluded = read_excluded(path, base, value.get("exclude_users", []), manifest)
    known = read_folders(path, base, value.get("folders", {}), folders or {})
    found, absent, sources = [], dict[str, Path](), []
    for given in value["sources"]:
        items, lacking = _there(path, base, given, known, folders or {})
        found, absent = found + items, absent | lacking
    if absent:
        print("left out: " + ", ".join(f"{name} (no {file})" for name, file in absent.items()), flush=True)
        manifest.extra["left_out"] = list(absent)
    if not found:
        raise InputError(path, "names no source that is there", f"one of {', '.join(map(str, absent.values()))}")
    for item in found:
        weight = SHARE_ABOVE_0.of(item.get("weight", 1.0), path, f"source {item['name']}: weight")
        cap = COUNT_OR_ALL.of(item.get("max_rows", -1), path, f"source {item['name']}: max_rows")
        files = record_files(base / item["path"], manifest)
        source = Source(item["name"], files, weight, cap, excluded)
        if excluded and not source.total and any(file.rows for file in files):
            fewer = "fewer users in the files of exclude_users (a smaller --user_share of prepare_rl.py)"
            what = f"source {source.name} has no row but those of excluded users"
            raise InputError(path, what, f"{fewer}, or none of these files")
        sources.append(source)
    return sources, COUNT.of(value.get("rows_per_file", 1000), path, "rows_per_file")


def _there(
    path: Path, base: Path, item: object, folders: Mapping[str, str], given: Collection[str]
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """(what is there of a source of the config, checked, with its path; what is not, name to path).

    A source of ``tasks`` (``pretrain`` or ``sft``) is a source a task. ``given``: the folders that a user named.
    """
    if not isinstance(item, dict):
        raise InputError(path, f"has the source {item!r}", '{"name": …, "path": …}')
    _check_keys(path, item, SOURCE_KEYS)
    wanted = "tasks" if "tasks" in item else "name"
    for key in (wanted, "path"):
        if not isinstance(item.get(key), str):
            raise InputError(path, f"a source has no {key}", f"every source has a {wanted} and a path")
    if not isinstance(item.get("optional", False), bool):
        raise InputError(path, f"source {item[wanted]}: optional is {item['optional']!r}", "true or false")
    place = in_folder(path, item["path"], folders)
    optional = item.get("optional", False) and not any(f"${{{name}}}" in item["path"] for name in given)
    rest = {key: value for key, value in item.items() if key != "tasks"} | {"path": place}
    if wanted == "name":
        if _names_files(base / place):
            return [rest], {}
        if not optional:
            raise _missing(item["name"], base / place)
        return [], {item["name"]: base / place}
    tasks = [task for task in TASKS.values() if task.stage == item["tasks"] and task.default]
    there = made(base / place, tasks)
    if not tasks or not (there or optional):
        right = f"one of {', '.join(task.file for task in tasks)}" if tasks else "tasks: pretrain or sft"
        raise InputError(base / place, f"has no records of the tasks {item['tasks']}", right)
    items = [{**rest, "name": task.topic, "path": f"{place}/{task.file}"} for task in there]
    return items, {task.name: base / place / task.file for task in tasks if task not in there}


def _names_files(path: Path) -> bool:
    try:
        return bool(list_parquet(path))
    except InputError:
        return False


def _missing(source: str, path: Path) -> InputError:
    """The error of a source that must be there, with the nearest names of what is."""
    folder = next(folder for folder in path.parents if folder.is_dir())
    near = difflib.get_close_matches(path.relative_to(folder).parts[0], os.listdir(folder), cutoff=0.8)
    right = " or ".join(near) or "a file, a folder of *.parquet, or a pattern that matches"
    return InputError(path, f"names no Parquet file, for the source {source}", f'{right}; or "optional": true')


def read_folders(path: Path, base: Path, value: object, given: Mapping[str, str]) -> dict[str, str]:
    """Name to folder, of a config's ``folders``: a folder, or the first that exists of a list; ``given`` first."""
    if not isinstance(value, dict) or not all(
        isinstance(item, str | list) and item and all(isinstance(name, str) for name in item) for item in value.values()
    ):
        raise InputError(path, f"folders is {value!r}", '{"NAME": folder, or a list of folders}')
    if unknown := sorted(set(given) - set(value)):
        right = f"those of its key folders ({', '.join(value) or 'none'}); or change the sources' paths"
        raise InputError(path, f"has no folder {unknown[0]}", right)
    chosen = {}
    for name, item in value.items():
        choices = [item] if isinstance(item, str) else item
        chosen[name] = next((choice for choice in choices if (base / choice).exists()), choices[0])
    return chosen | dict(given)


def in_folder(path: Path, text: str, folders: Mapping[str, str]) -> str:
    """A source's path with ``${NAME}`` replaced by the folder of that name."""
    for name in re.findall(r"\$\{(\w+)\}", text):
        if name not in folders:
            right = f"one of its key folders: {', '.join(folders) or 'none'}"
            raise InputError(path, f"names the folder ${{{name}}}", right)
    return re.sub(r"\$\{(\w+)\}", lambda found: folders[found[1]], text)


def read_excluded(path: Path, base: Path, names: object, manifest: Manifest) -> frozenset[int | str]:
    """The users whom the files of a config's ``exclude_users`` name: RL data or records, relative to ``base``."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(path, f"exclude_users is {names!r}", "a list of files, as output/rl_data/test.parquet")
    users: set[int | str | None] = set()
    for file in (file for name in names for file in list_parquet(base / name)):
        column = "extra_info" if "extra_info" in column_types(file) else "metadata"
        found, rows = set(), 0
        for batch in iter_batches(file, {column: Kind.JSON}):
            for row, value in enumerate(batch.column(column).to_pylist(), rows):
                try:
                    found.add(uid_of(value))
                except ValueError as error:
                    raise InputError(file, f"row {row} names no user ({error})", "a number or a name") from None
            rows += batch.num_rows
        if (column == "extra_info" and None in found) or not found - {None}:
            raise InputError(file, "names no user to exclude", "RL data, or records with a uid in their metadata")
        users |= found
        manifest.input(file, rows)
    return frozenset(users - {None})


def users_of(path: Path) -> Iterator[list[int | str | None]]:
    """The users of a file's records, in batches, from the metadata alone; None where a row names none, or no id."""

    def user(metadata: str | None) -> int | str | None:
        try:
            return uid_of(metadata)
        except ValueError:  # `check_columns` refuses the row
            return None

    for batch in iter_batches(path, {"metadata": Kind.JSON}, batch_size=8192, strict=False):
        yield list(map(user, batch.column("metadata").to_pylist()))


def _check_keys(path: Path, value: dict[str, Any], known: set[str]) -> None:
    if unknown := [key for key in value if key not in known]:
        raise InputError(path, f"has an unknown key {unknown[0]}", f"one of {', '.join(sorted(known))}")


def record_files(path: str | Path, manifest: Manifest) -> list[RecordFile]:
    """The record files that a file, a folder or a pattern names.

    Files of other columns in a folder or under a pattern do not belong: they are left out, and the manifest and the
    output name them. Named alone, such a file is an error.
    """
    paths, found = list_parquet(path), []
    for file in paths:
        reader = open_parquet(file, KEY_COLUMNS if len(paths) == 1 else ())
        names = reader.schema_arrow.names
        if all(key in names for key in KEY_COLUMNS) and any(text in names for text in _TEXT_COLUMNS):
            found.append(file_of(file))
        elif len(paths) == 1:
            raise InputError(file, "holds no records", "a file with segments or messages belongs to the mix")
        else:
            manifest.extra.setdefault("not_records", []).append(str(file))
            print(f"left out: {file} (not a file of records)")
    if not found:
        raise InputError(path, "holds no records", "files with uuid, source, metadata, and segments or messages")
    return found


def file_of(path: Path) -> RecordFile:
    """A Parquet file with its size, from its footer."""
    metadata = open_parquet(path).metadata
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return RecordFile(path, metadata.num_rows, sum(group.total_byte_size for group in groups))


def checked(batch: pa.RecordBatch, manifest: Manifest) -> pa.RecordBatch:
    """The rows that keep the rules of the format; the others counted by reason."""
    reasons = check_columns(batch)
    if not any(reasons):
        return batch
    manifest.dropped.update(filter(None, reasons))
    return batch.filter(pa.array([reason is None for reason in reasons]))


def sized_batches(file: RecordFile) -> Iterator[pa.RecordBatch]:
    """A file's rows as records, in batches of about 8 MB."""
    return record_batches(file.path, batch_rows(file.bytes / max(file.rows, 1)))
