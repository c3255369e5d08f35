"""The results folder of one evaluated model: metrics.json, predictions, scores a sample, and the manifest."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.tasks import TASKS, Example
from onerec.errors import InputError
from onerec.parquet import read_table, write_table
from onerec.run import read_json, read_json_lines

METRICS = "metrics.json"
PREFIX = "results_"
# What a line of the predictions holds, by the task's kind.
_FIELDS = {"rank": {"items": list}, "understand": {"text": str}, "reason": {"text": str}}
Metrics = dict[str, dict[str, float]]


def result_folder(output_dir: Path, name: str) -> Path:
    """``results_<name>/`` of a result; a name that begins so already is not doubled."""
    return output_dir / (PREFIX + name.removeprefix(PREFIX))


def label_of(name: str, value: dict[str, Any]) -> str:
    """How a result is shown: of a model that ranked with an item prior, ``sft`` or ``sft_prior``, as sft + prior."""
    return f"{name.replace('_prior', '')} + prior" if value.get("prior") else name


@dataclasses.dataclass
class Scores:
    """What every sample scored: ``columns`` of float64 [n], NaN where a sample has no score; rows by ``uuids``.

    ``users`` are what confidence intervals resample.
    """

    uuids: list[str]
    users: list[str]
    columns: dict[str, np.ndarray]

    def take(self, rows: Sequence[int]) -> Scores:
        """The scores of some rows, in that order."""
        picked = {name: values[list(rows)] for name, values in self.columns.items()}
        return Scores([self.uuids[i] for i in rows], [self.users[i] for i in rows], picked)

    def save(self, folder: Path, task: str) -> Path:
        """Write ``scores_<task>.parquet``."""
        path = folder / f"scores_{task}.parquet"
        write_table(path, pa.table({"uuid": self.uuids, "user": self.users, **self.columns}))
        return path

    @staticmethod
    def load(folder: Path, task: str) -> Scores | None:
        """Read ``scores_<task>.parquet``; None where the result has none."""
        path = folder / f"scores_{task}.parquet"
        if not path.exists():
            return None
        table = read_table(path)
        names = [name for name in table.column_names if name not in ("uuid", "user")]
        try:
            columns = {name: table[name].to_numpy().astype(np.float64) for name in names}
            return Scores(table["uuid"].to_pylist(), table["user"].to_pylist(), columns)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(path, f"holds no scores ({error})", "evaluate the model again") from None


def scores_of(examples: Sequence[Example], columns: dict[str, np.ndarray]) -> Scores:
    """Columns of values [n], a row an example."""
    return Scores([e.uuid for e in examples], [e.user for e in examples], columns)


def load_metrics(folder: Path) -> dict[str, Any]:
    """Read a results folder's ``metrics.json``."""
    value = read_json(folder / METRICS)
    try:
        spans = [span for found in value.get("intervals", {}).values() for span in found.values()]
        numbers = [number for metrics in value["tasks"].values() for number in metrics.values()]
        numbers += [number for low, high in spans for number in (low, high)]
        numbers += [v for points in value.get("beams", {}).values() for point in points for v in point.values()]
        texts = [value["name"], *value.get("data", {}).get("tests", {}).values(), value.get("data", {}).get("noun", "")]
        whole = all(isinstance(text, str) for text in texts) and None not in itertools.chain(*spans)
        whole &= all(n is None or (isinstance(n, int | float) and not math.isinf(n)) for n in numbers)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise InputError(folder / METRICS, "is not a result of evaluate.py", "give a results_<name> folder")
    return value


def check_same_data(folders: Sequence[Path], values: Sequence[dict[str, Any]]) -> None:
    """Raise `InputError` where two results measured a task on different test files."""
    first: dict[str, tuple[Path, str]] = {}
    for folder, value in zip(folders, values, strict=True):
        for task, mark in value.get("data", {}).get("tests", {}).items():
            other, known = first.setdefault(task, (folder, mark))
            if known != mark:
                raise InputError(
                    folder,
                    f"measured {task} on another version of the data than {other}",
                    "evaluate both on the same benchmark data",
                )


def load_predictions(folder: Path, task: str) -> list[dict[str, Any]]:
    """The lines of ``predictions_<task>.jsonl``; empty where the result has none."""
    path = folder / f"predictions_{task}.jsonl"
    if not path.exists():
        return []
    lines = read_json_lines(path, right := "evaluate the model again")
    fields = {"uuid": str} | _FIELDS.get(TASKS[task].kind if task in TASKS else "", {})
    for line in lines:
        if wrong := [name for name, kind in fields.items() if not isinstance({"uuid": "", **line}.get(name), kind)]:
            raise InputError(path, f"has a line without {wrong[0]}", right)
    return lines


def aligned(grid: Sequence[Sequence[str]], left: int) -> str:
    """Rows of a table in columns, the first ``left`` of which are flush left; a rule below the first row."""
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    lines = []
    for row in grid:
        cells = enumerate(zip(row, widths, strict=True))
        lines.append("  ".join(text.ljust(w) if i < left else text.rjust(w) for i, (text, w) in cells))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
