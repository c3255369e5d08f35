"""Records, the rows that the data stage hands to training: Arrow schema, constructors, validation, writer.

One Parquet row each, in the published RecIF format: ``uuid``, ``source``, ``metadata`` (JSON object), and either
``segments`` (JSON list of ``{"type": "text", "text": …}``, plain text to continue) or ``messages`` (JSON list of
``{"role": …, "content": [{"type": "text", "text": …}]}``, a conversation). The absent one of the two is null.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import uuid as uuidlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from onerec.errors import InputError
from onerec.files import FILE_LIST
from onerec.parquet import Kind, iter_batches, list_parts, plain, texts, whole_number, write_batches
from onerec.render import CHAT_MARK, message_text
from onerec.run import read_json

SCHEMA = pa.schema(
    [
        pa.field("uuid", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("segments", pa.string()),
        pa.field("messages", pa.string()),
    ]
)
# How the columns of records are read; a value that cannot be read this way makes a bad row.
KINDS = {"uuid": Kind.UUID, "source": Kind.TEXT, "metadata": Kind.JSON}
TEXT_KINDS = {"segments": Kind.JSON, "messages": Kind.JSON}
TEST_KINDS = {"uuid": Kind.UUID, "messages": Kind.JSON, "metadata": Kind.JSON}
ROLES = ("system", "user", "assistant", "tool")
_NAMESPACE = uuidlib.uuid5(uuidlib.NAMESPACE_URL, "https://github.com/onerec-factory/records")

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Record = dict[str, "str | None"]
Message = dict[str, Any]


def record_uuid(*parts: object) -> str:
    """UUIDv5 of what a row is (its task, its user, its item, …): the same parts give the same uuid."""
    name = orjson.dumps([str(part) for part in parts])
    # What uuid.uuid5 does, at a third of its time: a run makes millions of these.
    h = hashlib.sha1(_NAMESPACE.bytes + name, usedforsecurity=False).hexdigest()
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:32]}"


def message(role: str, text: str) -> Message:
    """One chat message with one text part."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def dumps(value: Any) -> str:
    """Compact JSON that keeps Chinese readable; the one way in which record fields are serialised."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def chat_record(uuid: str, source: str, metadata: dict[str, Any], messages: Sequence[Message]) -> Record:
    """A conversation as a record."""
    turns = dumps(list(messages))
    return {"uuid": uuid, "source": source, "metadata": dumps(metadata), "segments": None, "messages": turns}


def text_record(uuid: str, source: str, metadata: dict[str, Any], texts: Sequence[str]) -> Record:
    """Plain text, one segment a string, as a record."""
    segments = dumps([{"type": "text", "text": text} for text in texts])
    return {"uuid": uuid, "source": source, "metadata": dumps(metadata), "segments": segments, "messages": None}


def user_id(value: Any) -> int | str | None:
    """A user as metadata and RL data name one, None where none; text that writes a number is that number.

    Raises ValueError for what is no id: a fraction, NaN, a number past 64 bits, another type.
    """
    if isinstance(value, str):
        value = value.strip()
        return int(value) if re.fullmatch(r"-?[0-9]{1,18}", value) else value or None
    return None if value is None else whole_number(value)


def uid_of(metadata: str | None) -> int | str | None:
    """The user that a record's metadata names, None where none. Raises ValueError as `user_id`, and for no object."""
    if not isinstance(value := _loads(metadata), dict):
        raise ValueError("not a JSON object")
    return user_id(value.get("uid"))


def parse_messages(value: str) -> list[dict[str, str]]:
    """``messages`` JSON to ``[{"role", "content": str}, …]``, what chat templates take."""
    return _texts(orjson.loads(value))


def _texts(messages: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [{**item, "content": message_text(item["content"])} for item in messages]


def parse_segments(value: str) -> str:
    """``segments`` JSON to the whole text."""
    return _whole(orjson.loads(value))


def _whole(segments: list[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in segments if part.get("type") == "text")


def check_record(row: dict[str, Any]) -> str | None:
    """None where ``row`` keeps every rule of the format, otherwise the reason (short, fit to be counted)."""
    return read_record(row)[0]


def read_record(row: dict[str, Any]) -> tuple[str | None, list[dict[str, str]] | str | None]:
    """(reason, content): what `check_record` says of ``row`` and, where that is None, its messages or its whole text.

    Messages as `parse_messages` gives them, text as `parse_segments` does; the JSON is parsed once.
    """
    values = [row.get(name) for name in ("uuid", "source", "metadata", "segments", "messages")]
    reason, parsed = _read(*values)
    if reason:
        return reason, None
    return None, _texts(parsed) if values[4] is not None else _whole(parsed)


def check_columns(batch: pa.RecordBatch) -> list[str | None]:
    """`check_record` of every row of a batch with the columns of `SCHEMA` (all of type string)."""
    uuids, sources, *texts = batch.columns
    # JSON is parsed from bytes: decoding hundreds of SIDs only to scan them would cost as much again.
    columns = [uuids.to_pylist(), sources.to_pylist(), *(text.view(pa.binary()).to_pylist() for text in texts)]
    return [_read(*values)[0] for values in zip(*columns, strict=True)]


def _read(uuid: Any, source: Any, metadata: Any, segments: Any, messages: Any) -> tuple[str | None, Any]:
    """(reason or None, the parsed segments or messages)."""
    if not isinstance(uuid, str) or not _UUID.fullmatch(uuid):
        return "uuid is not valid", None
    if not isinstance(source, str) or not source.strip():
        return "source is empty", None
    facts = _loads(metadata)
    if not isinstance(facts, dict):
        return "metadata is not a JSON object", None
    try:
        user_id(facts.get("uid"))
    except ValueError:
        return "metadata's uid is no id", None
    if (segments is None) == (messages is None):
        return "neither or both of segments and messages", None
    parsed = _loads(segments if messages is None else messages)
    return _check_parts(parsed, "segments") if messages is None else _check_messages(parsed), parsed


def _loads(value: Any) -> Any:
    try:
        return orjson.loads(value)
    except (TypeError, ValueError):
        return None


def _check_parts(parts: Any, what: str) -> str | None:
    if not isinstance(parts, list) or not parts:
        return f"{what} is not a list of parts"
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            return f"{what} has a part that is not text"
        if CHAT_MARK.search(part["text"]):
            return f"{what} holds a mark of chats"
    return None if any(part["text"] for part in parts) else f"{what} is empty"


def _check_messages(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages is not a list"
    for item in messages:
        if not isinstance(item, dict) or item.get("role") not in ROLES:
            return "a message's role is unknown"
        content = item.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content or " "}]
        if wrong := _check_parts(content, "a message's content") or _check_calls(item):
            return wrong
    return None


def _check_calls(item: dict[str, Any]) -> str | None:
    if not isinstance(item.get("reasoning_content") or "", str):
        return "a message's reasoning_content is not text"
    calls = item.get("tool_calls") or []
    for call in calls if isinstance(calls, list) else [None]:
        call = call.get("function") or call if isinstance(call, dict) else None
        if not (isinstance(call, dict) and isinstance(call.get("name"), str) and "arguments" in call):
            return "a message's tool call has no name or no arguments"
    return None


def read_test(row: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(metadata, turns without answers) of a benchmark's row; raises ValueError, with the reason, for a bad row."""
    if not isinstance(row["uuid"], str) or not row["uuid"].strip():
        raise ValueError("uuid is null")
    metadata = _loads(row["metadata"])
    if not isinstance(metadata, dict):
        raise ValueError("metadata is not a JSON object")
    messages = _loads(row["messages"])
    if reason := _check_messages(messages):
        raise ValueError(reason)
    if not (turns := [turn for turn in _texts(messages) if turn["role"] != "assistant"]):
        raise ValueError("messages hold no turn to answer")
    return metadata, turns


def record_batches(
    path: str | Path, rows: int = 4096, row_groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """A file's rows in the columns of `SCHEMA`, all strings, in batches; what is absent or cannot be read is null.

    ``row_groups``: those of the file that are read, by number; all where not given.
    """
    for batch in iter_batches(path, KINDS, TEXT_KINDS, batch_size=rows, strict=False, row_groups=row_groups):
        for name in TEXT_KINDS:
            if name not in batch.schema.names:
                batch = batch.append_column(name, pa.nulls(batch.num_rows, pa.string()))
        yield batch.select(SCHEMA.names)


def rl_batches(path: str | Path, rows: int = 4096) -> Iterator[list[dict[str, Any]]]:
    """RL data in verl's columns, in batches: ``prompt`` as turns, the others as objects, empty where unusable."""
    columns = dict.fromkeys(("prompt", "reward_model", "extra_info"), Kind.JSON)
    for batch in iter_batches(path, columns, batch_size=rows, strict=False):
        found = [{name: _loads(value) for name, value in row.items()} for row in batch.to_pylist()]
        for row in found:
            row["prompt"] = [] if _check_messages(row["prompt"]) else _texts(row["prompt"])
            for name in ("reward_model", "extra_info"):
                row[name] = row[name] if isinstance(row[name], dict) else {}
        yield found


def check_prompts(path: str | Path) -> None:
    """Raise `InputError` where a row's ``prompt`` is not what verl reads: a list of {role, content}, text both."""
    first = 0
    for batch in iter_batches(path, ["prompt"]):
        column = plain(batch.column("prompt"))
        try:
            turns, offsets, _ = list_parts(column)
            roles, contents = (texts(pc.struct_field(turns, name))[0] for name in ("role", "content"))
        except (TypeError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(path, f"column prompt is {column.type}", "a list of {role, content} a row") from None
        good = pc.and_(pc.is_in(roles, pa.array(ROLES)), contents.is_valid()).to_numpy(zero_copy_only=False)
        lengths = np.diff(offsets)
        whole = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[good], minlength=len(lengths)) == lengths
        if (wrong := np.flatnonzero((lengths == 0) | ~whole)).size:
            what = f"row {first + int(wrong[0])} has no prompt, or one with a turn without role or content"
            raise InputError(path, what, f"a list of {{role, content}}, roles of {', '.join(ROLES)}")
        first += batch.num_rows


def write_records(path: str | Path, records: Iterable[Record], rows_per_batch: int = 4096) -> int:
    """Write records to one Parquet file atomically, streaming; returns the rows written."""
    rest = iter(records)
    batches = iter(lambda: list(itertools.islice(rest, rows_per_batch)), [])
    return write_batches(path, SCHEMA, (pa.Table.from_pylist(batch, schema=SCHEMA) for batch in batches))


def read_file_list(path: str | Path) -> list[Path]:
    """The shards that a ``file_list.json`` (or the folder that holds one) names; each must exist."""
    path = Path(path)
    path = path / FILE_LIST if path.is_dir() else path
    names = read_json(path)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(path, "is not a list of file names", "give the file_list.json of a prepare script")
    files = [path.parent / name for name in names]
    for file in files:
        if not file.is_file():
            raise InputError(file, f"is missing, but {path} names it", "run the prepare script again")
    return files
