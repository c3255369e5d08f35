"""What a run's numbers are: a step's metrics by task from its rows, and validation from the metrics files."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Two rewards closer than this are the same.
_EQUAL = 1e-9
_VALIDATED = re.compile(r"val-(?:core|aux)/onerec/([^/]+)/((?:pass|recall)@\d+|reward)/mean@1")
# Step to task to metric.
Validation = dict[str, dict[str, dict[str, float]]]


def group_metrics(
    groups: Sequence[Hashable], rewards: Sequence[float], answers: Sequence[Hashable]
) -> dict[str, float]:
    """Of the groups of a step: the share without signal (all rewards equal), and distinct answers a group.

    Three sequences of the same length, one entry a row; a group of one row carries no signal either.
    """
    by_group: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        by_group[group].append(row)
    if not by_group:
        return {}
    flat = [max(rewards[i] for i in rows) - min(rewards[i] for i in rows) < _EQUAL for rows in by_group.values()]
    distinct = [len({answers[i] for i in rows}) for rows in by_group.values()]
    sizes = [len(rows) for rows in by_group.values()]
    return {
        "groups": float(len(by_group)),
        "group_size": float(np.mean(sizes)),
        "no_signal": float(np.mean(flat)),
        "distinct_items": float(np.mean(distinct)),
        "duplicates": float(np.mean([size - d for size, d in zip(sizes, distinct, strict=True)])),
    }


def task_metrics(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """``onerec/<task>/<name>`` of a step, and ``onerec/all/<name>`` over all tasks.

    Every row has ``task``, ``group``, ``reward``, ``answer`` (what makes two answers the same) and ``info``: numbers by
    name, of which the mean is reported (NaN is left out).
    """
    by_task: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_task[row["task"]].append(row)
    result: dict[str, float] = {}
    for task, part in [*sorted(by_task.items()), ("all", list(rows))]:
        names = dict.fromkeys(name for row in part for name in row["info"])
        values = {
            name: [row["info"][name] for row in part if not math.isnan(row["info"].get(name, math.nan))]
            for name in names
        }
        means = {name: float(np.mean(found)) for name, found in values.items() if found}
        means["reward"] = float(np.mean([row["reward"] for row in part])) if part else math.nan
        means |= group_metrics([r["group"] for r in part], [r["reward"] for r in part], [r["answer"] for r in part])
        result |= {f"onerec/{task}/{name}": value for name, value in means.items()}
    return result


def low_var_kl(logprobs: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Schulman's k3 estimate of KL(policy ‖ reference) a token: exp(d) − d − 1, d = reference − policy."""
    difference = reference - logprobs
    return np.exp(difference) - difference - 1


def time_split(timing: dict[str, float]) -> dict[str, float]:
    """Seconds of a step by part, and what is left of the whole: generation, log-probabilities, update, weight sync."""
    parts = {
        "generation": ("gen",),
        "log_probabilities": ("old_log_prob", "ref"),
        "update": ("update_actor",),
        "weight_sync": ("update_weights",),
        "checkpoint": ("save_checkpoint",),
    }
    split = {name: sum(timing.get(key, 0.0) for key in keys) for name, keys in parts.items()}
    split["other"] = max(0.0, timing.get("step", 0.0) - sum(split.values()))
    return split


def read_validation(files: Sequence[Path]) -> Validation:
    """Pass@k, Recall@k and reward at each validated step; later files (later attempts) overwrite earlier ones' steps.

    The task ``all`` is the mean over tasks.
    """
    found: dict[int, dict[str, dict[str, float]]] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            tasks: dict[str, dict[str, float]] = {}
            for name, value in entry["data"].items():
                if match := _VALIDATED.fullmatch(name):
                    tasks.setdefault(match[1], {})[match[2]] = float(value)
            if tasks:
                names = dict.fromkeys(name for values in tasks.values() for name in values)
                tasks["all"] = {n: sum(v[n] for v in tasks.values()) / len(tasks) for n in names}
                found[int(entry["step"])] = tasks
    return {str(step): found[step] for step in sorted(found)}


def table(validation: Validation) -> str:
    """First and last validation side by side, a line a task."""
    if len(validation) < 2:
        return "no validation before and after: --test_freq N"
    (first, before), (last, after) = (list(validation.items())[i] for i in (0, -1))
    names = [name for name in next(iter(before.values())) if "@" in name]
    lines = [f"test file, step {first} → step {last}"]
    for task, values in after.items():
        cells = [f"{name} {before[task][name]:.4f} → {values[name]:.4f}" for name in names if task in before]
        lines.append(f"{task:12s} " + "  ".join(cells))
    return "\n".join(lines)
