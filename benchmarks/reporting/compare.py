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
    """The baseline with the largest value, asked in the way of the last stage."""
    last = last_ones(rows)[0]
    found = [
        (row, value)
        for row in rows
        if row.kind == "baseline" and same_protocol(row, last) and (value := row.cell(task, metric)) is not None
    ]
    return max(found, key=lambda pair: pair[1]) if found else None


def warning_lines(rows: Sequence[Row]) -> list[str]:
    """Where the last stage is below the best of counting: by a task's headline and ndcg@10, a line a task.

    It says what the stage together with its prior is, where that was measured.
    """
    last, *together = last_ones(rows)
    found = []
    for task in RANK_TASKS:
        below = _below_counting(rows, last, task)
        if not below:
            continue
        right = "train longer, or take sizes that fit the data (scripts/sizes.py)"
        for row in together:
            still = _below_counting(rows, row, task)
            right = (
                f"{row.label} is too ({'; '.join(still)}): {right}" if still else f"{row.label} is not: rank with it"
            )
        found.append(f"{title_of(rows, task)}: {last.label} is below counting ({'; '.join(below)}); {right}")
    return found


def last_ones(rows: Sequence[Row]) -> list[Row]:
    """The last stage and, where it was measured, what it ranks together with its prior."""
    stages = [row for row in rows if row.kind == "stage"]
    after = rows[rows.index(stages[-1]) :] if stages else []
    return stages[-1:] + [row for row in after if row.kind == "prior"][-1:]


def _below_counting(rows: Sequence[Row], row: Row, task: str) -> list[str]:
    """By which metrics of a task the best of counting is above ``row``."""
    counting = [each for each in rows if each.label.removesuffix("_unseen") in COUNTING and same_protocol(each, row)]
    below = []
    for metric in dict.fromkeys((TASKS[task].headline, "ndcg@10")):
        value = row.cell(task, metric)
        others = [(other, each.label) for each in counting if (other := each.cell(task, metric)) is not None]
        if value is not None and others and value < max(others)[0]:
            other, label = max(others)
            below.append(f"{metric} {value:.4f}, {label} has {other:.4f}")
    return below


def same_protocol(one: Row, two: Row) -> bool:
    """Whether both leave out the items of the history, or neither."""
    ways = [row.value.get("config", {}).get("exclude_seen") for row in (one, two)]
    return ways[0] == ways[1]


def against_baselines(rows: Sequence[Row], n_boot: int) -> list[Comparison]:
    """The last stage, alone and with its prior, against the best baseline of each ranking task."""
    found = [
        compare(best[0], row, f"{title_of(rows, name)} R@10", name, task.headline, n_boot)
        for row in last_ones(rows)
        for name, task in TASKS.items()
        if (best := best_baseline(rows, name, task.headline))
    ]
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
    """The last stage, alone and with its prior, over the best baseline, by ranking task."""
    lines = []
    for row in last_ones(rows):
        of = f"{row.label}, " if row.kind == "prior" else ""
        for name, task in TASKS.items():
            best, value = best_baseline(rows, name, task.headline), row.cell(name, task.headline)
            if best and best[1] and value is not None:
                lines.append(
                    f"{of}{title_of(rows, name)}: {task.headline} {value:.4f}, {value / best[1]:.2f} times the best "
                    f"baseline ({best[0].label}, {best[1]:.4f})"
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
            lines.append(f"{of}: weight {note['weight']:g} ({chosen}) of the prior whose digest is {note['content']}")
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
