"""Validation of a run from its metrics files: what Pass@k and Recall@k were at each validated step."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAME = re.compile(r"val-(?:core|aux)/onerec/([^/]+)/((?:pass|recall)@\d+|reward)/mean@1")


def read_validation(files: Sequence[Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Step to task to metric. Later files (later attempts of the run) overwrite the steps of earlier ones.

    ``all`` is the mean over tasks.
    """
    found: dict[int, dict[str, dict[str, float]]] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            tasks: dict[str, dict[str, Any]] = {}
            for name, value in entry["data"].items():
                if match := _NAME.fullmatch(name):
                    tasks.setdefault(match[1], {})[match[2]] = float(value)
            if tasks:
                names = dict.fromkeys(name for values in tasks.values() for name in values)
                tasks["all"] = {n: sum(v[n] for v in tasks.values()) / len(tasks) for n in names}
                found[int(entry["step"])] = tasks
    return {str(step): found[step] for step in sorted(found)}


def table(validation: dict[str, dict[str, dict[str, float]]]) -> str:
    """First and last validation side by side, a line a task."""
    if len(validation) < 2:
        return "no validation before and after: --val_before_train 1 --test_freq N"
    (first, before), (last, after) = (list(validation.items())[i] for i in (0, -1))
    names = [name for name in next(iter(before.values())) if "@" in name]
    lines = [f"test file, step {first} → step {last}"]
    for task, values in after.items():
        cells = [f"{name} {before[task][name]:.4f} → {values[name]:.4f}" for name in names if task in before]
        lines.append(f"{task:12s} " + "  ".join(cells))
    return "\n".join(lines)
