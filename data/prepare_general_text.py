"""Turn a Hugging Face data set of the usual shapes into records: general text for pretraining, SFT and distillation.

    python prepare_general_text.py --dataset openai/gsm8k --config_name main --source gsm8k --output_dir out
    python prepare_general_text.py --dataset my_corpus/*.jsonl --source mine --output_dir raw_data/general_text
    python prepare_general_text.py --list general_text/sft.csv --output_dir raw_data/general_text --max_rows 100000

A data set is a hub name, or local files (Parquet, JSON lines, CSV, text; gz too). Shapes, found by their columns or
named by --format: text (text, content), prompt (prompt, instruction, question … with response, output, answer …; an
input column is put below the instruction), messages ({role, content}), sharegpt ({from, value}). A reasoning column
goes into a think block before the answer; an answer that has a <think> part keeps it. Plain text goes to
<output_dir>/pretrain, conversations to <output_dir>/sft. Rows stream, so nothing is downloaded that --max_rows does
not need.
"""

from __future__ import annotations

import argparse
import csv
import glob
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import KEY_COLUMNS
from onerec.cli import cli
from onerec.errors import InputError, reading
from onerec.flags import COUNT_OR_ALL, ArgumentParser
from onerec.parquet import matching
from onerec.records import (
    Record,
    chat_record,
    check_record,
    dumps,
    message,
    record_uuid,
    text_record,
    write_records,
)
from onerec.render import THINK_CLOSE, with_thinking
from onerec.run import Manifest, progress

TEXT = ("text", "content", "raw_content")
PROMPT = ("prompt", "instruction", "question", "problem", "query", "input")
RESPONSE = ("response", "output", "answer", "completion", "solution", "chosen")
REASONING = ("reasoning_content", "reasoning", "thinking", "thought", "rationale", "chain_of_thought")
MESSAGES = ("messages", "conversations", "conversation", "dialogue")
_NAMES_OF_ROLES = {
    "user": "human user",
    "assistant": "gpt assistant model",
    "system": "system",
    "tool": "tool function observation",
}
ROLES = {name: role for role, names in _NAMES_OF_ROLES.items() for name in names.split()}
FORMATS = ("auto", "text", "prompt", "messages", "sharegpt", "records")
_LOADERS = {"parquet": "parquet", "json": "json", "jsonl": "json", "csv": "csv", "txt": "text"}
LIST_COLUMNS = ("name", "dataset", "config", "split", "format")


def first_of(names: Sequence[str], row: dict[str, Any]) -> str | None:
    """The first of ``names`` that is a column with a value in ``row``."""
    return next((name for name in names if row.get(name) not in (None, "", [])), None)


def shape_of(columns: Sequence[str]) -> str:
    """The format that column names speak for; raises ValueError where none does."""
    if all(key in columns for key in KEY_COLUMNS) and ("messages" in columns or "segments" in columns):
        return "records"
    if any(name in columns for name in MESSAGES):
        return "messages"
    if any(name in columns for name in PROMPT) and any(name in columns for name in RESPONSE):
        return "prompt"
    if any(name in columns for name in TEXT):
        return "text"
    raise ValueError(", ".join(columns))


def with_thought(answer: str, thought: str | None) -> str:
    """An answer behind its thought in a think block; as it is where it has one already, or there is no thought."""
    if not thought or THINK_CLOSE in answer:
        return answer
    return with_thinking(thought.strip(), answer.lstrip())


def system_turn(row: dict[str, Any]) -> list[tuple[str, str]]:
    """The turn of a row's system column, where it has one."""
    system = row.get("system")
    return [("system", system)] if isinstance(system, str) and system.strip() else []


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a row's messages, {role, content} or {from, value}; raises ValueError where it has none."""
    name = first_of(MESSAGES, row)
    if name is None:
        raise ValueError("no messages")
    turns = system_turn(row)
    for item in row[name]:
        role = ROLES.get(str(item.get("role") or item.get("from") or "").lower())
        text = item.get("content") if item.get("content") is not None else item.get("value")
        if isinstance(text, list):
            text = "".join(part.get("text") or "" for part in text if part.get("type") == "text")
        if role is None or not isinstance(text, str):
            raise ValueError("a turn without role or text")
        thought = item.get(first_of(REASONING, item) or "") if role == "assistant" else None
        turns.append((role, with_thought(text, thought)))
    last = first_of(REASONING, row)
    if last and turns and turns[-1][0] == "assistant":
        turns[-1] = ("assistant", with_thought(turns[-1][1], str(row[last])))
    return turns


def prompt_turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a row with a prompt and a response; raises ValueError where one is missing."""
    asked, answer, thought = first_of(PROMPT, row), first_of(RESPONSE, row), first_of(REASONING, row)
    if asked is None or answer is None or not isinstance(row[asked], str) or not isinstance(row[answer], str):
        raise ValueError("no prompt and response")
    question = row[asked]
    if asked != "input" and isinstance(row.get("input"), str) and row["input"].strip():
        question = f"{question}\n{row['input']}"
    answered = with_thought(row[answer], str(row[thought]) if thought else None)
    return [*system_turn(row), ("user", question), ("assistant", answered)]


def to_record(row: dict[str, Any], shape: str, source: str) -> Record:
    """A row as a record; raises ValueError, with the reason, where it cannot be one."""
    if shape == "records":
        values = {name: row.get(name) for name in (*KEY_COLUMNS, "segments", "messages")}
        return {name: dumps(v) if isinstance(v, list | dict) else v for name, v in values.items()}
    if shape == "text":
        name = first_of(TEXT, row)
        if name is None or not isinstance(row[name], str) or not row[name].strip():
            raise ValueError("no text")
        return text_record(record_uuid(source, row[name]), source, {}, [row[name]])
    turns = prompt_turns(row) if shape == "prompt" else turns_of(row)
    if not any(role == "assistant" and text.strip() for role, text in turns):
        raise ValueError("no answer")
    if not any(role == "user" for role, _ in turns):
        raise ValueError("no question")
    uuid = record_uuid(source, *itertools.chain.from_iterable(turns))
    return chat_record(uuid, source, {}, [message(role, text) for role, text in turns])


def load_rows(dataset: str, config: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set by hub name, or of local files, streamed; raises `InputError` where it cannot be had."""
    import datasets

    files = [str(path) for path in matching(dataset)]
    if len(files) == 1 and Path(files[0]).is_dir():
        files = sorted(str(path) for path in Path(files[0]).rglob("*") if _loader(path))
    if files:
        kinds = {_loader(Path(file)) for file in files}
        if len(kinds) != 1 or None in kinds:
            raise InputError(dataset, "names files of other or of several kinds", f"one of {', '.join(_LOADERS)}")
        with reading(dataset):
            paths = [glob.escape(file) for file in files]
            rows = datasets.load_dataset(kinds.pop(), data_files=paths, split="train", streaming=True)
    else:
        with reading(
            dataset, "cannot be loaded", "a hub name with network (HF_ENDPOINT names a mirror), or local files"
        ):
            rows = datasets.load_dataset(dataset, config or None, split=split, streaming=True)
    with reading(dataset, right="files that are whole, of UTF-8 and of the same columns"):
        yield from rows


def _loader(path: Path) -> str | None:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return _LOADERS.get(name.rpartition(".")[2])


def records(rows: Iterable[dict[str, Any]], args: argparse.Namespace, state: Manifest) -> Iterator[Record]:
    """Records of a data set's rows; bad ones and doubles counted."""
    shape, seen = None if args.format == "auto" else args.format, set()
    for row in progress(rows, args.source, args.max_rows if args.max_rows > 0 else None):
        if shape is None:
            try:
                shape = shape_of(list(row))
            except ValueError as error:
                right = f"say --format, one of {', '.join(FORMATS[1:])}"
                raise InputError(args.dataset, f"has the columns {error}", right) from None
        state.extra["rows_read"] = state.extra.get("rows_read", 0) + 1
        try:
            record = to_record(row, "messages" if shape == "sharegpt" else shape, args.source)
            if reason := check_record(record):
                raise ValueError(reason)
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            state.drop(str(error) if type(error) is ValueError else "row of another shape")
            continue
        if record["uuid"] in seen:
            state.drop("stands twice")
            continue
        seen.add(record["uuid"])
        yield record


def convert(args: argparse.Namespace) -> None:
    """One data set to one file of records."""
    manifest = Manifest("prepare_general_text", args)
    rows = load_rows(args.dataset, args.config_name, args.split)
    if args.max_rows > 0:
        rows = itertools.islice(rows, args.max_rows)
    made = records(rows, args, manifest)
    first = next(made, None)
    if first is None:
        what = f"gives no record ({manifest.dropped_text()})"
        raise InputError(args.dataset, what, "rows of one of the shapes (--help)")
    kind = "sft" if first["messages"] is not None else "pretrain"
    path = args.output_dir / kind / f"{args.source}.parquet"

    def checked() -> Iterator[Record]:
        yield first
        yield from made
        bad = sum(n for reason, n in manifest.dropped.items() if reason != "stands twice")
        manifest.check_bad_ratio(args.dataset, bad, manifest.extra["rows_read"], args.max_bad_ratio)

    count = write_records(path, checked())  # a run that fails leaves the file of the run before
    manifest.output(path, count)
    manifest.write(path.parent, f"{args.source}.manifest.json")
    print(f"{count:,} records in {path}; {manifest.dropped_text()}")


def read_list(path: Path) -> list[dict[str, str]]:
    """The data sets that a CSV names; raises `InputError` where it lacks a column."""
    if not path.is_file():
        raise InputError(path, "no such file", f"a CSV with {', '.join(LIST_COLUMNS)}")
    with reading(path), path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or any(row.get(name) is None for row in rows for name in LIST_COLUMNS):
        raise InputError(path, "lacks a column or every row", f"a CSV with {', '.join(LIST_COLUMNS)}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--dataset", help="hub name, or local files (a folder, a file or a pattern)")
    parser.add_argument("--config_name", default="", help="configuration of a hub data set")
    parser.add_argument("--split", default="train", help="split of a hub data set")
    parser.add_argument("--list", type=Path, help="CSV of data sets instead of --dataset (general_text/*.csv)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="of the list, these alone")
    parser.add_argument("--source", default="", help="name of the source, and of the file")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="shape of the rows")
    parser.add_argument("--max_rows", type=COUNT_OR_ALL, default=-1, help="rows read, at most (-1: all)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for pretrain/ and sft/")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    if (args.dataset is None) == (args.list is None):
        raise InputError("--dataset, --list", "are both given or both missing", "one of the two")
    if args.dataset:
        args.source = args.source or Path(args.dataset.rstrip("/*")).name.partition(".")[0]
        return convert(args)
    for row in read_list(args.list):
        if not args.only or row["name"] in args.only:
            of_row = {name: row[name] for name in ("dataset", "split", "format")}
            of_row |= {"config_name": row["config"], "source": row["name"]}
            convert(argparse.Namespace(**{**vars(args), **of_row}))


if __name__ == "__main__":
    cli(main)()
