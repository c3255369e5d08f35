"""Decayed transitions as a recommender."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

from benchmarks.recommenders.base import Options, Training, first_unskipped
from benchmarks.recommenders.counting import Popularity
from onerec.transitions import Transitions, best_first


class DecayedTransitions:
    """What follows the last three items in training, the nearer the more (`onerec.transitions`), then popularity."""

    def __init__(self, training: Training, options: Options | None = None) -> None:
        self.order = Popularity(training).order
        sequences = training.whole()
        items = np.fromiter(itertools.chain.from_iterable(sequences), np.int64)
        self.transitions = Transitions.learn(items, list(map(len, sequences)))

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        return [self._rank(history, n, s) for history, s in zip(histories, skip, strict=True)]

    def _rank(self, history: list[int], n: int, skip: Collection[int]) -> list[int]:
        pids, scores = self.transitions.score(history)
        first = pids[best_first(pids, scores)].tolist()
        known = set(first)
        return first_unskipped(itertools.chain(first, (pid for pid in self.order if pid not in known)), n, skip)
