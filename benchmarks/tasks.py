"""How the test files of RecIF-Bench are read; the tasks themselves are rows of `onerec.tasks`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from onerec.content import files_digest
from onerec.errors import InputError
from onerec.parquet import read_table, whole_number
from onerec.prompts import Words
from onerec.records import TEST_KINDS, read_test, user_id
from onerec.run import Manifest
from onerec.sid import SidSpec
from onerec.tasks import BENCH_TASKS as TASKS
from onerec.tasks import GENERAL, GENERAL_TASK, LABEL, RANK, RANK_TASKS, BenchTask

LESS_IS_BETTER = {"bits_per_byte"}
NEXT_ITEM = "video"  # the task that a report calls by the user's word for an item


def task_of(name: str) -> BenchTask:
    """The task of a name, general ability included."""
    return GENERAL_TASK if name == GENERAL else TASKS[name]


@dataclasses.dataclass(frozen=True)
class Example:
    """One test row: the prompt's messages, the answer text, the answer's ids (or its label), the history's ids.

    ``user`` groups rows for confidence intervals: the uid, or the row's uuid where it has none. ``history`` is empty
    where the file does not say it (the release); the SIDs of the prompt then stand for it.
    """

    uuid: str
    uid: Any
    messages: list[dict[str, str]]
    answer: str
    answer_ids: list[int]
    history: list[int]

    @property
    def user(self) -> str:
        """What intervals resample: the user of the row."""
        return self.uuid if self.uid is None else str(self.uid)


def drawn_rows(rows: int, sample_size: int, seed: int) -> np.ndarray:
    """Places of ``sample_size`` of ``rows`` rows drawn by ``seed`` (-1: all), ascending int64.

    Files are sorted, by user or time say, so that the first rows are no sample. Of one seed a larger draw holds every
    smaller one.
    """
    if not 0 < sample_size < rows:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).permutation(rows)[:sample_size])


def load_examples(
    folder: Path,
    task: BenchTask,
    sample_size: int = -1,
    manifest: Manifest | None = None,
    max_bad_ratio: float = 0.01,
    seed: int = 0,
) -> list[Example]:
    """Read a task's test file, ``sample_size`` of its rows drawn by ``seed`` (-1: all).

    A row without a usable answer is left out and counted in ``manifest``, and so is one that repeats a uuid, or a
    user with the same prompt and answer. Raises `InputError` where the file is missing or empty, or where more than
    ``max_bad_ratio`` of its rows have no usable answer.
    """
    path = folder / task.test_file
    table = read_table(path, TEST_KINDS, strict=False)
    spec, words = load_spec(folder), Words.of_folder(folder)
    drawn = drawn_rows(table.num_rows, sample_size, seed)
    table = table.take(drawn)
    examples: list[Example] = []
    wrong, doubles, seen = [], 0, set()
    for row, value in zip(drawn.tolist(), table.to_pylist(), strict=True):
        try:
            example = _example(value, task, spec, words)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong.append(f"row {row} has no usable answer or messages ({error!r})")
            continue
        keys = {example.uuid, (value["messages"], value["metadata"])}
        if example.uid is None:
            keys = {example.uuid}  # without a user, two equal rows may be two people's
        if keys & seen:
            doubles += 1
            continue
        seen |= keys
        examples.append(example)
    if len(wrong) > max_bad_ratio * table.num_rows:
        more = f", and {len(wrong) - 1} more of {table.num_rows}" if len(wrong) > 1 else ""
        raise InputError(path, wrong[0] + more, f"metadata with {_answer_key(task, words)}")
    if manifest is not None:
        manifest.input(task.name, len(examples))
        manifest.drop(f"{task.name}: no usable answer", len(wrong))
        manifest.drop(f"{task.name}: the same row again", doubles)
    return examples


def _answer_key(task: BenchTask, words: Words) -> str:
    return {RANK: task.answer_ids, LABEL: f"label, or answer {' or '.join(words.yes_no)}"}.get(task.kind, "answer")


def _example(value: dict[str, Any], task: BenchTask, spec: SidSpec, words: Words) -> Example:
    metadata, messages = read_test(value)
    if token := next(filter(None, (spec.foreign(turn["content"]) for turn in messages)), None):
        raise ValueError(f"the itemic token {token} is outside the codebooks {list(spec.codebook_sizes)}")
    answer = metadata.get("answer", "")
    ids: list[int] = []
    if task.kind == RANK:
        ids = [whole_number(pid) for pid in metadata[task.answer_ids]]
        if not ids:
            raise ValueError("an empty list")
    elif task.kind == LABEL:
        ids = [whole_number(metadata["label"]) if "label" in metadata else 1 - words.yes_no.index(answer)]
        if ids[0] not in (0, 1):
            raise ValueError(f"label {ids[0]}")
    elif not answer.strip():
        raise KeyError("answer")
    history = [whole_number(pid) for pid in metadata.get("history_pid") or []]
    return Example(value["uuid"], user_id(metadata.get("uid")), messages, answer, ids, history)


def load_spec(folder: Path) -> SidSpec:
    """The benchmark data's SID specification; the release's three layers of 8,192 where the folder has none."""
    return SidSpec.of_folder(folder)


def available_tasks(folder: Path) -> list[str]:
    """The tasks whose test file is there, in the table's order, and general ability where its held-out text is."""
    found = [name for name, task in TASKS.items() if (folder / task.test_file).exists()]
    return [*found, *([GENERAL] if (folder / GENERAL).is_dir() else [])]


def choose_tasks(folder: Path, wanted: list[str] | None) -> list[str]:
    """The tasks to run: ``wanted``, checked, or all there are; raises `InputError` where there is none.

    ``rank`` among the wanted ones stands for every ranking task there is.
    """
    found, chosen = available_tasks(folder), []
    for name in wanted or found:
        if name == RANK:
            chosen += [task for task in found if task in RANK_TASKS]
        elif name not in TASKS and name != GENERAL:
            raise InputError("--tasks", f"{name} is not a task", f"of {', '.join(TASKS)}, {GENERAL}, or {RANK}")
        elif name not in found:
            raise InputError(folder, f"has no test file of {name}", f"it has {', '.join(found) or 'none'}")
        else:
            chosen.append(name)
    if not chosen:
        raise InputError(folder, "holds no <task>/<task>_test.parquet", "give the benchmark_data folder")
    return list(dict.fromkeys(chosen))


def absent(folder: Path, wanted: list[str] | None) -> str:
    """For the log, where nobody said which tasks to run: those without a test file."""
    found = available_tasks(folder)
    names = [] if wanted else [name for name in (*TASKS, GENERAL) if name not in found]
    return f"; left out, without a test file: {', '.join(names)}" if names else ""


def fingerprint(folder: Path, name: str) -> str:
    """What tells two versions of a task's test data apart: a digest of its files' contents."""
    return files_digest(sorted((folder / name).glob("*.parquet")))
