"""RecIF-Bench as data: one row a task, and how its test file is read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from onerec.errors import InputError
from onerec.files import SID_SPEC, test_file
from onerec.parquet import read_table
from onerec.records import parse_messages
from onerec.sid import SidSpec

GENERAL = "general"


@dataclasses.dataclass(frozen=True)
class BenchTask:
    """A task: its name, kind (``rank`` items, ``label`` yes or no), catalogue, answer key and headline metric."""

    name: str
    kind: str
    catalogue: str
    answer_key: str
    headline: str


TASKS = {
    task.name: task
    for task in (
        BenchTask("video", "rank", "video_ad", "answer_pid", "recall@10"),
        BenchTask("ad", "rank", "video_ad", "answer_pid", "recall@10"),
        BenchTask("product", "rank", "product", "answer_iid", "recall@10"),
        BenchTask("label_cond", "rank", "video_ad", "answer_pid", "recall@10"),
        BenchTask("interactive", "rank", "video_ad", "answer_pid", "recall@10"),
        BenchTask("label_pred", "label", "video_ad", "label", "auc"),
    )
}


@dataclasses.dataclass(frozen=True)
class Example:
    """One test row: the prompt's messages, the answer text, the ids of the answer (or the label), the history's ids."""

    uuid: str
    uid: Any
    messages: list[dict[str, str]]
    answer: str
    answer_ids: list[int]
    history: list[int]


def load_examples(folder: Path, task: BenchTask, sample_size: int = -1) -> list[Example]:
    """Read a task's test file, the first ``sample_size`` rows (-1: all); raises `InputError` where it has no answers."""
    path = folder / test_file(task.name)
    table = read_table(path, ["uuid", "messages", "metadata"])
    if sample_size > 0:
        table = table.slice(0, sample_size)
    examples = []
    for row, value in enumerate(table.to_pylist()):
        try:
            metadata = json.loads(value["metadata"])
            answer = metadata[task.answer_key]
            ids = [int(answer)] if task.kind == "label" else [int(pid) for pid in answer]
            messages = parse_messages(value["messages"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                path,
                f"row {row} has no usable answer or messages ({error!r})",
                f"metadata with {task.answer_key}",
            ) from None
        history = [int(pid) for pid in metadata.get("history_pid", [])]
        examples.append(
            Example(value["uuid"], metadata.get("uid"), messages, metadata.get("answer", ""), ids, history)
        )
    return examples


def load_spec(folder: Path) -> SidSpec:
    """The benchmark data's SID specification."""
    return SidSpec.load(folder / SID_SPEC)


def available_tasks(folder: Path) -> list[str]:
    """The tasks whose test file is there, in the table's order, and general ability where its held-out text is."""
    found = [name for name in TASKS if (folder / test_file(name)).exists()]
    return [*found, *([GENERAL] if (folder / GENERAL).is_dir() else [])]
