"""Metrics of one ranked list that the benchmark and RL's validation share. Names and definitions as in RecIF-Bench."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def pass_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """1 where any of the first ``k`` is in ``answer``, else 0."""
    return float(bool(set(ranked[:k]) & set(answer)))


def recall_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """|first k ∩ answer| / |answer|, over distinct ids; 0 where there is no answer."""
    wanted = set(answer)
    return len(wanted & set(ranked[:k])) / len(wanted) if wanted else 0.0
