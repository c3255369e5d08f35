"""Metrics that the benchmark shares with RL's validation and the toy world. Names and definitions as in RecIF-Bench."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np


def pass_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """1 where any of the first ``k`` is in ``answer``, else 0."""
    return float(bool(set(ranked[:k]) & set(answer)))


def recall_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """|first k ∩ answer| / |answer|, over distinct ids; 0 where there is no answer."""
    wanted = set(answer)
    return len(wanted & set(ranked[:k])) / len(wanted) if wanted else 0.0


def auc(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties half; NaN with one class only."""
    truth, value = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    positives, negatives = int((truth == 1).sum()), int((truth != 1).sum())
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(value, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((mean_rank[truth == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))
