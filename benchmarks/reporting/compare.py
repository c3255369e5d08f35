"""Paired comparisons: each stage with the one before it, the last one with the best baseline."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.intervals import Paired, paired
from benchmarks.reporting.rows import Row, columns, title_of
from benchmarks.results import Scores
from benchmarks.tasks import GENERAL, NEXT_ITEM, RANK_TASKS, TASKS

_VALUES = ("before", "after", "difference", "95 % interval")
COUNTING = ("popularity", "cooccurrence")  # baselines that learn nothing: what a model has to be above
HEADINGS = ("from", "to", "metric", *_VALUES, "p", "better / worse", "sign test p")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two rows by one metric."""

    before: str
    after: str
    heading: str
    task: str
    metric: str
    result: Paired

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return {**dataclasses.asdict(self), "result": dataclasses.asdict(self.result)}

    def cells(self) -> list[str]:
        """For the table of `HEADINGS`."""
        r = self.result
        users = "–" if r.better is None else f"{r.better} / {r.worse}"
        sign = "–" if r.sign_p is None else _p(r.sign_p)
        values = (f"{r.a:.4f}", f"{r.b:.4f}", f"{r.difference:+.4f}", f"{r.low:+.4f} to {r.high:+.4f}")
        return [self.before, self.after, self.heading, *values, _p(r.p), users, sign]


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def compare(before: Row, after: Row, heading: str, task: str, metric: str, n_boot: int) -> Comparison | None:
    """The comparison, None where one of the two has no scores of the task."""
    one, two = (Scores.load(row.folder, task) for row in (before, after))
    if one is None or two is None:
        return None
    try:
        result = paired(metric, one, two, n_boot)
    except KeyError:
        return None
    return result and Comparison(before.label, after.label, heading, task, metric, result)


def _neighbours(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Every stage and the one before it; a stage alone and with its prior."""
    stages = [row for row in rows if row.kind == "stage"]
    yield from itertools.pairwise(stages)
    before = None
    for row in rows:
        if row.kind == "stage":
            before = row
        elif row.kind == "prior" and before is not None:
            yield before, row


def between_stages(rows: Sequence[Row], n_boot: int) -> list[Comparison]:
    """Every stage against the one before it, by the columns of the table."""
    found = [
        compare(before, after, column.heading, column.task, column.metric, n_boot)
        for before, after in _neighbours(rows)
        for column in columns(rows)
        if before.cell(column.task, column.metric) is not None and after.cell(column.task, column.metric) is not None
    ]
    return [c for c in found if c]


def best_baseline(rows: Sequence[Row], task: str, metric: str) -> tuple[Row, float] | None:
    """The baseline with the largest value."""
    found = [(row, v) for row in rows if row.kind == "baseline" and (v := row.cell(task, metric)) is not None]
    return max(found, key=lambda pair: pair[1]) if found else None


def warning_lines(rows: Sequence[Row]) -> list[str]:
    """Where the last stage is below the best of counting: by a task's headline and ndcg@10, a line a task."""
    last = [row for row in rows if row.kind == "stage"][-1]
    counting = [row for row in rows if row.label.removesuffix("_unseen") in COUNTING and same_protocol(row, last)]
    found = []
    for task in RANK_TASKS:
        below = []
        for metric in dict.fromkeys((TASKS[task].headline, "ndcg@10")):
            value = last.cell(task, metric)
            others = [(other, row.label) for row in counting if (other := row.cell(task, metric)) is not None]
            if value is not None and others and value < max(others)[0]:
                other, label = max(others)
                below.append(f"{metric} {value:.4f}, {label} has {other:.4f}")
        if below:
            right = "train longer, or take sizes that fit the data (scripts/sizes.py)"
            found.append(f"{title_of(rows, task)}: {last.label} is below counting ({'; '.join(below)}); {right}")
    return found


def same_protocol(one: Row, two: Row) -> bool:
    """Whether both leave out the items of the history, or neither."""
    ways = [row.value.get("config", {}).get("exclude_seen") for row in (one, two)]
    return ways[0] == ways[1]


def against_baselines(rows: Sequence[Row], n_boot: int) -> list[Comparison]:
    """The last stage against the best baseline of each ranking task."""
    stages = [row for row in rows if row.kind == "stage"]
    found = []
    for name, task in TASKS.items():
        if stages and (best := best_baseline(rows, name, task.headline)):
            found.append(compare(best[0], stages[-1], f"{title_of(rows, name)} R@10", name, task.headline, n_boot))
    return [c for c in found if c]


def change_lines(rows: Sequence[Row]) -> list[str]:
    """What each stage gained and lost against the one before it, for the headline metrics."""
    lines = []
    wanted = {(NEXT_ITEM, "recall@10"), (GENERAL, "exact_match"), (GENERAL, "bits_per_byte")}
    for before, after in _neighbours(rows):
        parts = []
        for column in columns(rows):
            if (column.task, column.metric) not in wanted:
                continue
            old, new = (row.cell(column.task, column.metric) for row in (before, after))
            if old is not None and new is not None:
                parts.append(f"{column.heading} {old:.4f} → {new:.4f} ({new - old:+.4f})")
        if parts:
            lines.append(f"{before.label} → {after.label}: " + "; ".join(parts))
    return lines


def ratio_lines(rows: Sequence[Row]) -> list[str]:
    """The last stage over the best baseline, by ranking task."""
    stages = [row for row in rows if row.kind == "stage"]
    lines = []
    for name, task in TASKS.items():
        best = best_baseline(rows, name, task.headline)
        value = stages[-1].cell(name, task.headline) if stages else None
        if best and best[1] and value is not None:
            lines.append(
                f"{title_of(rows, name)}: {task.headline} {value:.4f}, {value / best[1]:.2f} times the best baseline "
                f"({best[0].label}, {best[1]:.4f})"
            )
    return lines


def prior_lines(rows: Sequence[Row]) -> list[str]:
    """Which item prior a model ranked with, its weight, and how that was chosen."""
    lines = []
    for row in rows:
        for task, note in row.value.get("prior", {}).items():
            chosen = note["chosen"]
            if isinstance(chosen, dict):
                chosen = f"the best {chosen['metric']} of {chosen['users']:,} validation users"
            of = f"{row.label}, {title_of(rows, task)}"
            lines.append(f"{of}: prior {note['content']}, weight {note['weight']:g} ({chosen})")
    return lines


def judge_lines(rows: Sequence[Row]) -> list[str]:
    """What was not judged, and what a result says about its judge."""
    lines = []
    for row in rows:
        for task, reasons in row.value.get("unjudged", {}).items():
            parts = ", ".join(f"{n} ({reason})" for reason, n in reasons.items())
            lines.append(f"{row.label}, {task}: not judged: {parts}")
        if judge := row.value.get("judge"):
            tokens = judge["prompt_tokens"] + judge["completion_tokens"]
            lines.append(
                f"{row.label}: judge {judge['model']}, {judge['calls']} calls, "
                f"{judge['cached']} answers from the cache, {tokens} tokens, {judge['usd']:.4f} US dollars"
            )
    return lines
