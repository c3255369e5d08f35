"""Confidence intervals by bootstrap over users, and paired tests between two results on the same samples.

A user's samples are not independent, so users are resampled, not samples (the cluster bootstrap: Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 8). Intervals are percentile intervals. The same seed gives the same
resamples of the same users, which is what makes the difference of two results' replicates a paired bootstrap.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.results import Scores
from onerec.ranking import auc

N_BOOT, LEVEL = 1000, 0.95
_CHUNK_ELEMENTS = 1 << 22
# Values [b] of a metric under weights [b, n_users]: how often each user was drawn.
Statistic = Callable[[np.ndarray], np.ndarray]


def ratio(top: np.ndarray, bottom: np.ndarray) -> Statistic:
    """Σ_u w_u top_u / Σ_u w_u bottom_u over users; NaN where the bottom is 0."""

    def value(weights: np.ndarray) -> np.ndarray:
        below = weights @ bottom
        return np.divide(weights @ top, below, out=np.full(len(weights), math.nan), where=below > 0)

    return value


def weighted_auc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> Statistic:
    """AUC with every sample counted as often as its user was drawn; ties half. users: int [n], index of each user."""
    _, tie = np.unique(scores, return_inverse=True)
    order = np.argsort(tie, kind="stable")
    positive = (labels == 1)[order]
    ends = np.flatnonzero(np.append(np.diff(tie[order]) > 0, True))

    def value(weights: np.ndarray) -> np.ndarray:
        drawn = weights[:, users[order]]
        ups = np.cumsum(np.where(positive, drawn, 0), axis=1)[:, ends]
        downs = np.cumsum(np.where(positive, 0, drawn), axis=1)[:, ends]
        group_up, group_down = (np.diff(x, axis=1, prepend=0) for x in (ups, downs))
        won = (group_up * (downs - group_down / 2)).sum(1)
        pairs = ups[:, -1] * downs[:, -1]
        return np.divide(won, pairs, out=np.full(len(weights), math.nan), where=pairs > 0)

    return value


def statistic(metric: str, scores: Scores, users: np.ndarray, n_users: int) -> Statistic:
    """How ``metric`` follows from the columns of ``scores``.

    ``auc`` and ``user_auc`` from ``label`` and ``score``, ``bits_per_byte`` from ``bits`` and ``bytes``; any other is
    the mean of its column over the samples that have a value.
    """

    def by_user(values: np.ndarray) -> np.ndarray:
        return np.bincount(users, values, n_users)

    if metric == "auc":
        return weighted_auc(scores.columns["label"], scores.columns["score"], users)
    if metric == "user_auc":
        return ratio(*_user_aucs(scores, users, n_users))
    if metric == "bits_per_byte":
        return ratio(by_user(scores.columns["bits"]), by_user(scores.columns["bytes"]))
    values = scores.columns[metric]
    known = ~np.isnan(values)
    return ratio(by_user(np.where(known, values, 0)), by_user(known.astype(float)))


def _user_aucs(scores: Scores, users: np.ndarray, n_users: int) -> tuple[np.ndarray, np.ndarray]:
    """(samples × AUC, samples) a user; both 0 for users with one class only."""
    top, bottom = np.zeros(n_users), np.zeros(n_users)
    order = np.argsort(users, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(users[order])) + 1):
        value = auc(scores.columns["label"][rows], scores.columns["score"][rows])
        if not math.isnan(value):
            top[users[rows[0]]], bottom[users[rows[0]]] = len(rows) * value, len(rows)
    return top, bottom


def _index(users: Sequence[str]) -> tuple[np.ndarray, int]:
    names, index = np.unique(np.asarray(users, dtype=object).astype(str), return_inverse=True)
    return index, len(names)


def draws(n_users: int, n_boot: int, seed: int, width: int) -> Iterator[np.ndarray]:
    """Weights [b, n_users] of ``n_boot`` resamples, in chunks that suit statistics over ``width`` samples."""
    rng = np.random.default_rng(seed)
    size = max(1, _CHUNK_ELEMENTS // max(width, n_users))
    for first in range(0, n_boot, size):
        b = min(size, n_boot - first)
        drawn = rng.integers(n_users, size=(b, n_users)) + n_users * np.arange(b)[:, None]
        yield np.bincount(drawn.ravel(), minlength=b * n_users).reshape(b, n_users).astype(np.float64)


def replicates(metrics: Sequence[str], scores: Scores, n_boot: int = N_BOOT, seed: int = 0) -> dict[str, np.ndarray]:
    """Values of each metric [1 + n_boot]: on the samples as they are, then on every resample of the users."""
    users, n_users = _index(scores.users)
    statistics = [statistic(metric, scores, users, n_users) for metric in metrics]
    parts = [[s(np.ones((1, n_users)))] for s in statistics]
    for weights in draws(n_users, n_boot, seed, len(users)):
        for part, s in zip(parts, statistics, strict=True):
            part.append(s(weights))
    return {metric: np.concatenate(part) for metric, part in zip(metrics, parts, strict=True)}


def values_and_intervals(
    metrics: Sequence[str], scores: Scores, n_boot: int = N_BOOT, seed: int = 0
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Every metric, and its 95 % interval where there are at least two users and one resample has a value."""
    values, intervals = {}, {}
    for metric, found in replicates(metrics, scores, n_boot, seed).items():
        values[metric] = float(found[0])
        if len(set(scores.users)) > 1 and (interval := interval_of(found)):
            intervals[metric] = [round(x, 6) for x in interval]
    return values, intervals


def _percentiles(values: np.ndarray) -> list[float]:
    tail = (1 - LEVEL) / 2 * 100
    return [float(x) for x in np.percentile(values, [tail, 100 - tail])]


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two results on their common samples: values, difference (b − a) with interval, two p-values.

    ``p`` is of the bootstrap; ``sign_p`` of the sign test over users whose mean score differs (None for metrics that
    are no mean), ``better`` and ``worse`` are how many users those are.
    """

    samples: int
    users: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    p: float
    better: int | None = None
    worse: int | None = None
    sign_p: float | None = None


def paired(metric: str, a: Scores, b: Scores, n_boot: int = N_BOOT, seed: int = 0) -> Paired | None:
    """Compare two results by ``metric`` on the samples that both have a score for; None where there are none."""
    both = _common(metric, a, b)
    if both is None:
        return None
    before, after = (replicates([metric], s, n_boot, seed)[metric] for s in both)
    result = _compared(len(both[0].uuids), set(both[0].users), before, after)
    plain = metric in a.columns and metric in b.columns
    return dataclasses.replace(result, **_sign_test(metric, *both)) if result and plain else result


def paired_mean(
    metric: str, pairs: Sequence[tuple[Scores, Scores]], n_boot: int = N_BOOT, seed: int = 0
) -> Paired | None:
    """Compare the means of ``metric`` over tasks, each a pair of results; None where a task has no common samples."""
    common = [_common(metric, a, b) for a, b in pairs]
    if not common or None in common:
        return None
    before, after = (mean_replicates(metric, side, n_boot, seed) for side in zip(*common, strict=True))
    users = {user for one, _ in common for user in one.users}
    return _compared(sum(len(one.uuids) for one, _ in common), users, before, after)


def mean_replicates(metric: str, tasks: Sequence[Scores], n_boot: int = N_BOOT, seed: int = 0) -> np.ndarray:
    """The mean over tasks of ``metric`` [1 + n_boot]; a resample draws the users of all tasks together."""
    index, n_users = _index([user for scores in tasks for user in scores.users])
    ends = np.cumsum([len(scores.users) for scores in tasks])[:-1]
    found = [
        statistic(metric, scores, users, n_users) for scores, users in zip(tasks, np.split(index, ends), strict=True)
    ]
    weights = itertools.chain([np.ones((1, n_users))], draws(n_users, n_boot, seed, len(index)))
    return np.concatenate([np.mean([value(w) for value in found], axis=0) for w in weights])


def interval_of(found: np.ndarray) -> list[float] | None:
    """The 95 % interval of replicates [1 + n_boot]; None where no resample has a value."""
    known = found[1:][~np.isnan(found[1:])]
    return _percentiles(known) if known.size else None


def _common(metric: str, a: Scores, b: Scores) -> tuple[Scores, Scores] | None:
    """The samples that both have a score for, in one order; None where there are none."""
    place = {uuid: row for row, uuid in enumerate(b.uuids)}
    rows = [(i, place[uuid]) for i, uuid in enumerate(a.uuids) if uuid in place]
    if metric in a.columns and metric in b.columns:
        rows = [(i, j) for i, j in rows if not np.isnan(a.columns[metric][i] + b.columns[metric][j])]
    if not rows:
        return None
    one, two = a.take([i for i, _ in rows]), b.take([j for _, j in rows])
    two.users = one.users
    return one, two


def _compared(samples: int, users: set[str], before: np.ndarray, after: np.ndarray) -> Paired | None:
    """Two results' replicates of the same resamples."""
    change = after - before
    known = change[1:][~np.isnan(change[1:])]
    if math.isnan(change[0]) or not known.size:
        return None
    low, high = _percentiles(known)
    tail = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (int(tail) + 1) / (len(known) + 1))
    return Paired(samples, len(users), float(before[0]), float(after[0]), float(change[0]), low, high, p)


def _sign_test(metric: str, one: Scores, two: Scores) -> dict[str, float | int]:
    from scipy.stats import binomtest

    users, n_users = _index(one.users)
    change = np.bincount(users, two.columns[metric] - one.columns[metric], n_users)
    better, worse = int((change > 1e-12).sum()), int((change < -1e-12).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return {"better": better, "worse": worse, "sign_p": p}
