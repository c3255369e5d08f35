"""Results as rows of one table: which columns there are, their cells, and the table as text and Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import aligned, check_same_data, label_of, load_metrics
from benchmarks.tasks import GENERAL, LESS_IS_BETTER, NEXT_ITEM, TASKS

_SHORT = {
    "recall@10": "R@10",
    "auc": "AUC",
    "macro_wip_double_weighted_f1": "F1 (judge)",
    "embedding_similarity": "similarity",
    "llm_score": "judge 1–5",
    "char_rouge_l": "ROUGE-L",
    "exact_match": "EM",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One result: its label, its kind (``stage``, ``prior`` or ``baseline``), its folder and its metrics.json.

    ``prior``: the stage before it and an item prior rank together.
    """

    label: str
    kind: str
    folder: Path
    value: dict[str, Any]

    @property
    def name(self) -> str:
        """What the result was evaluated as: the stage, where the chain's scripts did it."""
        return self.value.get("name", self.label)

    def cell(self, task: str, metric: str) -> float | None:
        """A metric, None where it was not measured."""
        value = self.value["tasks"].get(task, {}).get(metric)
        return None if value is None or math.isnan(value) else value

    def interval(self, task: str, metric: str) -> list[float] | None:
        """Its 95 % interval, None where there is none."""
        return self.value.get("intervals", {}).get(task, {}).get(metric)


@dataclasses.dataclass(frozen=True)
class Column:
    """A metric of a task in the table."""

    task: str
    metric: str
    heading: str

    @property
    def more_is_better(self) -> bool:
        return self.metric not in LESS_IS_BETTER

    def best(self, rows: Sequence[Row]) -> float | None:
        """The best value over all rows."""
        values = [v for row in rows if (v := row.cell(self.task, self.metric)) is not None]
        return (max if self.more_is_better else min)(values) if values else None


def read_rows(stages: Sequence[Path], labels: Sequence[str] | None, baselines: Sequence[Path]) -> list[Row]:
    """Stages in order, then baselines; raises `InputError` where two measured a task on different data."""
    values = [load_metrics(folder) for folder in (*stages, *baselines)]
    check_same_data([*stages, *baselines], values)
    names = [label_of(value["name"], value) for value in values]
    names[: len(stages)] = labels or names[: len(stages)]
    kinds = ["prior" if value.get("prior") else "stage" for value in values[: len(stages)]]
    if "stage" not in kinds:  # a model that was asked with its prior alone
        kinds = ["stage"] * len(stages)
    kinds += ["baseline"] * len(baselines)
    return [Row(*row) for row in zip(names, kinds, (*stages, *baselines), values, strict=True)]


def title_of(rows: Sequence[Row], task: str) -> str:
    """What a task is called in a report: the next item's by the user's word for an item, unless that names another."""
    noun = next((noun for row in rows if (noun := row.value.get("data", {}).get("noun"))), "")
    others = {name for row in rows for name in row.value["tasks"]}
    return noun if task == NEXT_ITEM and noun and noun not in others else task


def columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that at least one row has: every task's headline (judge's where there was one), then a few more."""
    wanted = []
    for name, task in TASKS.items():
        judged = any(row.cell(name, task.headline) is not None for row in rows)
        metric = task.headline if judged or not task.fallback else task.fallback
        wanted.append(Column(name, metric, f"{title_of(rows, name)} {_SHORT[metric]}"))
    for metric, short in (("ndcg@10", "NDCG@10"), ("pass@1", "Pass@1")):
        wanted.append(Column(NEXT_ITEM, metric, f"{title_of(rows, NEXT_ITEM)} {short}"))
    wanted += [Column(GENERAL, "exact_match", "general EM"), Column(GENERAL, "bits_per_byte", "bits/byte ↓")]
    extra = sorted({m for row in rows for m in row.value["tasks"].get("lm_eval", {})})
    wanted += [Column("lm_eval", metric, metric) for metric in extra]
    return [c for c in wanted if any(row.cell(c.task, c.metric) is not None for row in rows)]


def text_of(value: float | None) -> str:
    """Four digits after the point, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def span_of(interval: Sequence[float] | None) -> str:
    """An interval, or nothing."""
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def markdown_table(rows: Sequence[Row]) -> str:
    """Stages and baselines by metric; the best of each column in bold."""
    chosen = columns(rows)
    lines = ["| stage | " + " | ".join(c.heading for c in chosen) + " |", "|---" * (len(chosen) + 1) + "|"]
    for row in rows:
        cells = []
        for column in chosen:
            value = row.cell(column.task, column.metric)
            best = value is not None and value == column.best(rows)
            cells.append(f"**{text_of(value)}**" if best else text_of(value))
        label = row.label.replace("|", "\\|")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plain_markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Any table as Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(str(x).replace("|", "\\|") for x in row) + " |" for row in rows)


def terminal_table(rows: Sequence[Row], width: int = 100) -> str:
    """The same table in aligned columns: below each other in parts that fit ``width`` where it is too wide."""
    names = ["stage", *(row.label for row in rows)]
    parts = [[names]]
    for c in columns(rows):
        column = [c.heading, *(text_of(row.cell(c.task, c.metric)) for row in rows)]
        if len(parts[-1]) > 1 and sum(2 + max(map(len, x)) for x in (*parts[-1], column)) - 2 > width:
            parts.append([names])
        parts[-1].append(column)
    return "\n\n".join(aligned(list(zip(*part, strict=True)), 1) for part in parts)
