"""Decayed transitions: what follows an item in people's sequences, the nearer the more. Counting's strongest ranking.

From item a to item b: Σ `DECAY` ^ (j − i − 1) over a at place i and b at place j of one sequence, i < j ≤ i + `WINDOW`,
over count(a) ^ `SOURCE_POWER` · count(b) ^ `TARGET_POWER`, the counts being how often an item stands in any sequence. A
history's score of b: Σ `BACK` ^ k of that from its item k places before the last, k < `LAST`.

The constants were found on Amazon 2014 (leave one out); experiments/2026-11-27-item-prior has what they reach.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onerec.run import progress
from onerec.sparse import BLOCK, Pairs, best_of_rows, row_blocks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WINDOW, DECAY = 6, 0.5
SOURCE_POWER, TARGET_POWER = 0.5, 0.2
LAST, BACK = 3, 0.7
KEPT = 256  # followers of an item, its best: 400 MB at 200,000 items that all have so many


def decay(distance: int) -> float:
    """What a pair of items ``distance`` places apart counts."""
    return DECAY ** (distance - 1)


@dataclasses.dataclass(frozen=True)
class Transitions:
    """What follows each item: ``pids`` int64 [n], rising, and ``matrix`` float32 [n, n], sparse, from row to column."""

    pids: np.ndarray
    matrix: csr_matrix

    @classmethod
    def learn(cls, items: np.ndarray, lengths: Sequence[int], kept: int = KEPT) -> Transitions:
        """Count sequences: ``items`` int64 [t], one behind the other, and their ``lengths``.

        Of an item's followers the ``kept`` best stay. Made for a block of items at a time (`onerec.sparse`), so that
        the counts are never held together.
        """
        from scipy import sparse

        pids, places = np.unique(items, return_inverse=True)
        if not len(pids):
            return cls(pids.astype(np.int64), sparse.csr_matrix((0, 0), dtype=np.float32))
        pairs, parts = Pairs(places, lengths, len(pids), WINDOW, decay, both=False), []
        source, target = pairs.times**-SOURCE_POWER, pairs.times**-TARGET_POWER
        blocks = row_blocks(pairs.most, BLOCK)
        for first, last in progress(blocks, "transitions", len(pids), "item", size=lambda block: block[1] - block[0]):
            counts = pairs.rows(first, last)
            values = counts.data * np.repeat(source[first:last], np.diff(counts.indptr)) * target[counts.indices]
            block = sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
            parts.append(best_of_rows(block, kept).astype(np.float32))
        return cls(pids.astype(np.int64), sparse.vstack(parts, format="csr"))

    def score(self, history: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(pids int64, rising, and their scores float64, above 0) of what may follow a history, oldest item first."""
        latest = np.array(history[-LAST:][::-1], np.int64)
        rows = np.searchsorted(self.pids, latest)
        columns, values = [np.empty(0, np.int64)], [np.empty(0)]
        for step, (row, pid) in enumerate(zip(rows.tolist(), latest.tolist(), strict=True)):
            if row < len(self.pids) and self.pids[row] == pid:
                part = slice(self.matrix.indptr[row], self.matrix.indptr[row + 1])
                columns.append(self.matrix.indices[part])
                values.append(self.matrix.data[part] * BACK**step)
        found, where = np.unique(np.concatenate(columns), return_inverse=True)
        return self.pids[found], np.bincount(where, np.concatenate(values), len(found))


def best_first(pids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Places of the scores from the largest; of equal ones the smaller pid first."""
    return np.lexsort((pids, -scores))
