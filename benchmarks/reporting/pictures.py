"""What the first screen shows: bars of recommendation and general ability by stage, and each task's and metric's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.intervals import interval_of, mean_replicates
from benchmarks.reporting.compare import best_baseline, same_protocol
from benchmarks.reporting.rows import Row, columns, title_of
from benchmarks.results import Scores
from benchmarks.tasks import GENERAL, RANK_TASKS
from onerec.pages import Bar, bars

RECALL = "recall@10"


def ranking_tasks(rows: Sequence[Row]) -> list[str]:
    """The ranking tasks of the last stage that was asked any."""
    measured = ([t for t in RANK_TASKS if row.cell(t, RECALL) is not None] for row in rows if row.kind == "stage")
    return next((tasks for tasks in reversed(list(measured)) if tasks), [])


def mean_recall(row: Row, tasks: Sequence[str]) -> float | None:
    """Mean Recall@10 over tasks; None where one was not measured."""
    values = [row.cell(task, RECALL) for task in tasks]
    return None if not values or None in values else sum(values) / len(values)


def mean_interval(row: Row, tasks: Sequence[str], n_boot: int) -> list[float] | None:
    """Its 95 % interval over users; None where the result has no scores a sample."""
    scores = [Scores.load(row.folder, task) for task in tasks]
    if not scores or None in scores:
        return None
    return interval_of(mean_replicates(RECALL, scores, n_boot))


def best_mean(rows: Sequence[Row], tasks: Sequence[str], only: Sequence[str] = ()) -> tuple[Row, float] | None:
    """The baseline with the best mean Recall@10 (of those named ``only``), asked in the way of the last stage."""
    last = [row for row in rows if row.kind == "stage"][-1]
    found = [
        (row, value)
        for row in rows
        if row.kind == "baseline" and same_protocol(row, last) and (not only or row.name in only)
        if (value := mean_recall(row, tasks)) is not None
    ]
    return max(found, key=lambda pair: pair[1]) if found else None


def general_metric(rows: Sequence[Row]) -> str | None:
    """How general ability is told: by exact match, or by bits a byte where no answer is right; None: not measured."""
    for metric in ("exact_match", "bits_per_byte"):
        if any(row.cell(GENERAL, metric) for row in rows):
            return metric
    return None


def first_screen(rows: Sequence[Row], n_boot: int) -> list[dict[str, Any]]:
    """Cards of recommendation and of general ability, stage by stage; none of what no stage measured."""
    stages, cards = [row for row in rows if row.kind != "baseline"], []
    if tasks := ranking_tasks(rows):
        best = best_mean(rows, tasks)
        found = [
            Bar(row.label, row.kind, value, None if value is None else mean_interval(row, tasks, n_boot))
            for row in stages
            for value in [mean_recall(row, tasks)]
        ]
        of = title_of(rows, tasks[0]) if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
        line = best and (f"best baseline, {best[0].label}", best[1])
        cards.append({"heading": "Recommendation", "aside": f"Recall@10, {of}", "bars": bars(found, line)})
    stages = [row for row in stages if row.kind == "stage"]  # a prior ranks items only
    if metric := general_metric(stages):
        found = [Bar(r.label, r.kind, r.cell(GENERAL, metric), r.interval(GENERAL, metric)) for r in stages]
        known = [bar for bar in found if bar.value is not None]
        first = (f"{known[0].label}, before it learnt items", known[0].value) if stages[0].name == "base" else None
        how = "share of questions answered right" if metric == "exact_match" else "bits a byte of text, less is better"
        cards.append({"heading": "General ability", "aside": how, "bars": bars(found, first)})
    return cards


def every_metric(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A card a column of the table: stages as bars with intervals, the best baseline as a line."""
    cards = []
    for c in columns(rows):
        found = [
            Bar(row.label, row.kind, value, row.interval(c.task, c.metric))
            for row in rows
            if row.kind != "baseline" and (value := row.cell(c.task, c.metric)) is not None
        ]
        best = best_baseline(rows, c.task, c.metric)
        if found:
            line = best and (f"best baseline, {best[0].label}", best[1])
            if c.metric == "auc" and not best:
                line = "chance", 0.5
            cards.append({"heading": c.heading, "bars": bars(found, line)})
    return cards
