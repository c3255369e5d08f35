"""The benchmark's metrics: pure functions on ranked ids and scores. Names and definitions as in RecIF-Bench.

``ranked`` is a list of ids, best first, without doubles; ``answer`` the list of ids that the user took, in order.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from onerec.ranking import pass_at_k, recall_at_k

KS = (1, 10, 32)


def position1_pass_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """1 where the first item of ``answer`` is among the first ``k``, else 0."""
    return float(answer[0] in ranked[:k])


def ndcg_at_k(ranked: Sequence[Hashable], answer: Sequence[Hashable], k: int) -> float:
    """Σ_{i<k, ranked[i] ∈ answer} 1/log2(i+2), over the same sum for a ranking that puts all of answer first."""
    wanted = set(answer)
    gain = sum(1 / math.log2(i + 2) for i, item in enumerate(ranked[:k]) if item in wanted)
    return gain / sum(1 / math.log2(i + 2) for i in range(min(k, len(wanted))))


def ranking_metrics(ranked: Sequence[Hashable], answer: Sequence[Hashable], ks: Sequence[int] = KS) -> dict[str, float]:
    """Every ranking metric of one sample, by name."""
    functions = {"pass": pass_at_k, "position1_pass": position1_pass_at_k, "recall": recall_at_k, "ndcg": ndcg_at_k}
    return {f"{name}@{k}": function(ranked, answer, k) for name, function in functions.items() for k in ks}
