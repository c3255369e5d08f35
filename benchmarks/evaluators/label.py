"""Label prediction: how well log P(是) − log P(否) orders what the user did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.results import Scores
from benchmarks.tasks import Example

METRICS = ("auc", "user_auc")


def line(example: Example, yes: float, no: float) -> dict[str, Any]:
    """A sample's line of the predictions."""
    return {
        "uuid": example.uuid,
        "uid": example.uid,
        "label": example.answer_ids[0],
        "score": round(yes - no, 5),
    }


def score(examples: Sequence[Example], lines: Sequence[dict[str, Any]]) -> Scores:
    """Labels and scores, from which `intervals.statistic` makes AUC and per-user weighted AUC."""
    columns = {name: np.array([float(value[name]) for value in lines]) for name in ("label", "score")}
    return Scores([e.uuid for e in examples], [e.user for e in examples], columns)
