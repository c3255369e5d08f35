"""What simple predictors and an oracle reach on the toy world: the head-room that a model has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.toy.items import STYLES, Items
from data.toy.users import Watch
from onerec.ranking import auc

_WINDOW = 5  # co-occurrence counts the items that follow within this many positions
_RECENT = 20  # the heuristic looks at this many last items


def recall_at(k: int, scores: np.ndarray, targets: np.ndarray) -> float:
    """|top-k of ``scores`` ∩ targets| / |targets|; scores [n_items], targets unique rows. Ties go to the lower row."""
    top = np.argsort(-scores, kind="stable")[:k]
    return len(np.intersect1d(top, targets)) / len(targets)


def predictors(items: Items, train: list[np.ndarray]) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Scores [n_items] for a history (item rows, oldest first), by name. Seen items are not excluded."""
    n = len(items)
    popularity = np.bincount(np.concatenate(train), minlength=n).astype(float)
    follows = np.zeros((n, n))
    for sequence in train:
        for gap in range(1, _WINDOW + 1):
            np.add.at(follows, (sequence[:-gap], sequence[gap:]), 1)
    tie_break = popularity / (popularity.max() + 1) / n
    niche = items.subtopic * len(STYLES) + items.style

    def heuristic(history: np.ndarray) -> np.ndarray:
        recent = history[-_RECENT:]
        subtopics = np.bincount(items.subtopic[recent], minlength=items.subtopic.max() + 1)
        styles = np.bincount(items.style[recent], minlength=len(STYLES)) / len(recent)
        return (
            subtopics[items.subtopic] * styles[items.style]
            + 0.1 * np.bincount(niche[recent], minlength=niche.max() + 1)[niche]
        ) * np.sqrt(popularity + 1)

    return {
        "popularity": lambda history: popularity,
        "last-item co-occurrence": lambda history: follows[history[-1]] + tie_break,
        "subtopics and style of the last 20 items": heuristic,
    }


def measure(items: Items, rows: list[dict], watches: list[Watch], k: int = 10) -> dict[str, tuple[float, float]]:
    """Recall@k on the test users' target videos, by predictor, and of the oracle that knows the true next-item odds.

    Two numbers each: over the whole catalogue, and with the items of the history left out of the ranking.
    """
    to_row = {int(pid): row for row, pid in enumerate(items.pid)}
    histories = [np.array([to_row[int(p)] for p in row["hist_video_pid"]]) for row in rows]
    targets = [np.unique([to_row[int(p)] for p in row["target_video_pid"]]) for row in rows]
    train = [np.array(watch.sequence) for row, watch in zip(rows, watches, strict=True) if row["split"] == 0]
    test = [i for i, row in enumerate(rows) if row["split"] == 1]

    def recalls(score: Callable[[int], np.ndarray]) -> tuple[float, float]:
        values = []
        for i in test:
            whole = score(i)
            unseen = whole.astype(float)
            unseen[histories[i]] = -np.inf
            values.append([recall_at(k, whole, targets[i]), recall_at(k, unseen, targets[i])])
        with_seen, without_seen = np.mean(values, axis=0)
        return float(with_seen), float(without_seen)

    table = predictors(items, train).items()
    result = {name: recalls(lambda i, score=score: score(histories[i])) for name, score in table}
    return result | {"oracle": recalls(lambda i: watches[i].next_probability)}


def label_auc(rows: list[dict], watches: list[Watch]) -> float:
    """AUC of longview on the test users' targets for an oracle that knows how well each item fits its user."""
    truth, score = [], []
    for row, watch in zip(rows, watches, strict=True):
        if row["split"] == 1:
            labels = row["target_video_longview"]
            truth += list(labels)
            score += [-fit for fit in watch.fit[-len(labels) :]]
    return auc(truth, score)


def print_reference(items: Items, rows: list[dict], watches: list[Watch]) -> None:
    """Print the table of `measure` and `label_auc`."""
    print(f"{'video task, Recall@10 on the test users':42s} {'all items':>10s} {'unseen only':>12s}")
    for name, (whole, unseen) in measure(items, rows, watches).items():
        print(f"  {name:40s} {whole:10.4f} {unseen:12.4f}")
    print(f"longview of the test users' targets, AUC of the oracle: {label_auc(rows, watches):.4f}")
