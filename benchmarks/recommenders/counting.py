"""Recommenders that count: popularity, last-item transitions, item-based neighbours."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import numpy as np

from benchmarks.recommenders.base import Options, Training, first_unskipped

WINDOW = 5  # transitions count the items that follow within this many positions
NEIGHBOURS = 100


def by_count(counts: Counter[int]) -> list[int]:
    """Items by count, the smaller id first where counts are equal."""
    return sorted(counts, key=lambda pid: (-counts[pid], pid))


class Popularity:
    """The most frequent targets of the training users, the same for everybody."""

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.counts = training.target_counts()
        self.order = by_count(self.counts)

    def rank(
        self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]
    ) -> list[list[int]]:
        return [first_unskipped(self.order, n, s) for s in skip]


class Cooccurrence:
    """Last-item transitions: what followed the user's last item within `WINDOW` positions in training, then popularity."""

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.popularity = Popularity(training)
        self.follows: dict[int, Counter[int]] = defaultdict(Counter)
        for history, targets in training.sequences:
            items = [*history, *targets]
            for place, pid in enumerate(items):
                self.follows[pid].update(items[place + 1 : place + 1 + WINDOW])

    def rank(
        self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]
    ) -> list[list[int]]:
        return [self._rank(history, n, s) for history, s in zip(histories, skip, strict=True)]

    def _rank(self, history: list[int], n: int, skip: Collection[int]) -> list[int]:
        after = self.follows.get(history[-1], Counter()) if history else Counter()
        counts = self.popularity.counts
        first = sorted(after, key=lambda pid: (-after[pid], -counts[pid], pid))
        rest = (pid for pid in self.popularity.order if pid not in after)
        return first_unskipped(itertools.chain(first, rest), n, skip)


class ItemKnn:
    """Item-based neighbours (Deshpande and Karypis 2004): Σ over the history of the cosine to its items' 100 nearest.

    An item is the set of training users who have it; popularity breaks ties and fills up.
    """

    def __init__(self, training: Training, options: Options | None = None) -> None:
        from scipy import sparse

        self.popularity = Popularity(training)
        self.items = training.items()
        self.row = {pid: i for i, pid in enumerate(self.items)}
        users = {user: i for i, user in enumerate(dict.fromkeys(training.users))}
        pairs = {
            (users[user], self.row[pid])
            for user, (history, targets) in zip(training.users, training.sequences, strict=True)
            for pid in (*history, *targets)
        }
        rows, columns = np.array(sorted(pairs)).reshape(-1, 2).T
        taken = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(users), len(self.items)))
        norm = sparse.diags(1 / np.sqrt(np.asarray(taken.sum(0)).ravel()))
        similar = (norm @ (taken.T @ taken) @ norm).tocsr()
        similar.setdiag(0)
        self.similar = _keep_nearest(similar, NEIGHBOURS)
        counts = self.popularity.counts
        # Popularity below the smallest similarity, so that it only breaks ties and fills up.
        self.tie = (
            np.array([counts[pid] for pid in self.items]) / (max(counts.values(), default=1) + 1) * 1e-9
        )

    def rank(
        self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]
    ) -> list[list[int]]:
        found = []
        for history, s in zip(histories, skip, strict=True):
            rows = [self.row[pid] for pid in dict.fromkeys(history) if pid in self.row]
            scores = np.asarray(self.similar[rows].sum(0)).ravel() + self.tie
            order = np.argsort(-scores, kind="stable")[: n + len(s)]
            found.append(first_unskipped([self.items[i] for i in order], n, s))
        return found


def _keep_nearest(similar, n: int):
    """Only the ``n`` largest values of every row of a sparse matrix."""
    from scipy import sparse

    data, columns, ends = [], [], [0]
    for row in range(similar.shape[0]):
        span = slice(similar.indptr[row], similar.indptr[row + 1])
        values, places = similar.data[span], similar.indices[span]
        best = np.lexsort((places, -values))[:n]
        best = best[values[best] > 0]
        data.append(values[best])
        columns.append(places[best])
        ends.append(ends[-1] + len(best))
    return sparse.csr_matrix((np.concatenate(data), np.concatenate(columns), ends), shape=similar.shape)
