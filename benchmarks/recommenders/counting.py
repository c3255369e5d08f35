"""Recommenders that count: popularity, last-item co-occurrence, item-based neighbours."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from benchmarks.recommenders.base import Options, Training, first_unskipped
from onerec.sparse import BLOCK, best_of_rows, row_blocks

WINDOW = 5  # co-occurrence counts the items that follow within this many positions
NEIGHBOURS = 100


def by_count(counts: Counter[int]) -> list[int]:
    """Items by count, the smaller id first where counts are equal."""
    return sorted(counts, key=lambda pid: (-counts[pid], pid))


class Popularity:
    """The most frequent targets of the training users, the same for everybody."""

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.counts = training.target_counts()
        self.order = by_count(self.counts)

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        return [first_unskipped(self.order, n, s) for s in skip]


class Cooccurrence:
    """What followed the user's last item within `WINDOW` positions in training, then popularity.

    The pairs are not counted beforehand, they would be `WINDOW` times the data: kept is where each item stands, and
    what stands behind it is counted when it is somebody's last.
    """

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.popularity = Popularity(training)
        lengths = [len(history) + len(targets) for history, targets in training.sequences]
        self.items = _flat(training)
        self.end = np.repeat(np.cumsum(lengths), lengths)  # of every place, where its sequence ends
        self.places = np.argsort(self.items, kind="stable")
        self.sorted = self.items[self.places]

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        return [self._rank(history, n, s) for history, s in zip(histories, skip, strict=True)]

    def _rank(self, history: list[int], n: int, skip: Collection[int]) -> list[int]:
        first = self._after(history[-1]) if history else []
        after = set(first)
        rest = (pid for pid in self.popularity.order if pid not in after)
        return first_unskipped(itertools.chain(first, rest), n, skip)

    def _after(self, pid: int) -> list[int]:
        """What followed ``pid``: most often first, then the most popular, then the smaller id."""
        begin, end = np.searchsorted(self.sorted, [pid, pid + 1])
        places = self.places[begin:end]
        behind = places[:, None] + np.arange(1, WINDOW + 1)
        items, counts = np.unique(self.items[behind[behind < self.end[places][:, None]]], return_counts=True)
        popularity = np.array([self.popularity.counts[pid] for pid in items.tolist()], np.int64)
        return items[np.lexsort((items, -popularity, -counts))].tolist()


class ItemKnn:
    """Item-based neighbours (Deshpande and Karypis 2004): Σ over the history of the cosine to its items' 100 nearest.

    An item is the set of training users who have it; popularity breaks ties and fills up.
    """

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.popularity = Popularity(training)
        self.similar, items = nearest(training, NEIGHBOURS)
        self.items = items.tolist()
        self.row = {pid: i for i, pid in enumerate(self.items)}
        counts = self.popularity.counts
        # Popularity below the smallest similarity, so that it only breaks ties and fills up.
        self.tie = np.array([counts[pid] for pid in self.items]) / (max(counts.values(), default=1) + 1) * 1e-9

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        found = []
        for history, s in zip(histories, skip, strict=True):
            rows = [self.row[pid] for pid in dict.fromkeys(history) if pid in self.row]
            scores = np.asarray(self.similar[rows].sum(0)).ravel() + self.tie
            order = np.argsort(-scores, kind="stable")[: n + len(s)]
            found.append(first_unskipped([self.items[i] for i in order], n, s))
        return found


def _flat(training: Training) -> np.ndarray:
    """The items of all sequences, one behind the other, int64."""
    pids = (pid for history, targets in training.sequences for pid in itertools.chain(history, targets))
    return np.fromiter(pids, np.int64)


def nearest(training: Training, n: int) -> tuple[Any, np.ndarray]:
    """(cosines of each item to its ``n`` nearest, sparse [items, items], 0 to itself; the items' ids, rising).

    The products of an item with all others are made for a block of items at a time (`onerec.sparse`) and never held
    together: 400 users with 300 of 200,000 items have 36 million.
    """
    from scipy import sparse

    users = {user: i for i, user in enumerate(dict.fromkeys(training.users))}
    items, columns = np.unique(_flat(training), return_inverse=True)
    lengths = [len(history) + len(targets) for history, targets in training.sequences]
    rows = np.repeat([users[user] for user in training.users], lengths)
    taken = sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=(len(users), len(items)))
    taken.sum_duplicates()
    taken.data[:] = 1
    takers = taken.T.tocsr()
    norm = 1 / np.sqrt(np.diff(takers.indptr))
    parts = []
    for first, last in row_blocks(takers @ np.diff(taken.indptr).astype(np.int64), BLOCK):
        block = (takers[first:last] @ taken).tocsr()
        own = np.repeat(np.arange(first, last), np.diff(block.indptr))
        cosine = norm[own] * block.data * norm[block.indices]
        cosine[block.indices == own] = 0
        block = sparse.csr_matrix((cosine, block.indices, block.indptr), shape=block.shape)
        parts.append(best_of_rows(block, n))
    return sparse.vstack(parts, format="csr"), items
