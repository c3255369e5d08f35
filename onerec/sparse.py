"""Item by item matrices, too large to be made whole: a block of rows at a time, the best of each kept; and vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

# Entries made at a time: some hundreds of megabytes with what is computed beside them.
BLOCK = 1 << 22


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; rows of zeros stay zeros."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm == 0, 1, norm)).astype(np.float32)


def svd_vectors(matrix: csr_matrix, dim: int, seed: int, n_iter: int = 5) -> np.ndarray:
    """The rows of a sparse ``matrix`` [n, m] by truncated SVD: float32 [n, dim] of length one, zeros past its rank.

    In float32, which takes a third of float64's time.
    """
    from sklearn.decomposition import TruncatedSVD

    rank = min(dim, min(matrix.shape) - 1)
    vectors = TruncatedSVD(rank, n_iter=n_iter, random_state=seed).fit_transform(matrix.astype(np.float32, copy=False))
    return unit(np.pad(vectors, ((0, 0), (0, dim - rank))))


class Pairs:
    """How often items stand at most ``window`` places apart in one sequence; a pair counts ``weight(distance)``.

    ``items`` int [t] are all sequences one behind the other, as numbers from 0 to ``n`` − 1, ``lengths`` those of the
    sequences. ``both``: in both directions; else a row holds only what comes behind its item.
    """

    def __init__(
        self,
        items: np.ndarray,
        lengths: Sequence[int],
        n: int,
        window: int,
        weight: Callable[[int], float] = lambda distance: 1 / distance,
        both: bool = True,
    ) -> None:
        # No two items of a user stand further apart than that.
        self.items, self.n, self.window = items.astype(np.int32), n, min(window, max(lengths))
        self.weight, self._signs = weight, (1, -1) if both else (1,)
        self._owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._places = np.argsort(self.items, kind="stable")
        self.times = np.bincount(self.items, minlength=n)
        self._begin = np.concatenate([[0], np.cumsum(self.times)])

    @property
    def most(self) -> np.ndarray:
        """Pairs of every item, at most, int64 [n]; what `row_blocks` is to be given."""
        return self.times * len(self._signs) * self.window

    def margin(self) -> np.ndarray:
        """The sums of all rows, float64 [n]."""
        total = np.zeros(self.n)
        for distance in range(1, self.window + 1):
            same = self._owner[:-distance] == self._owner[distance:]
            for side in (self.items[:-distance], self.items[distance:])[: len(self._signs)]:
                total += np.bincount(side[same], minlength=self.n) * self.weight(distance)
        return total

    def rows(self, first: int, last: int) -> csr_matrix:
        """The rows of the items from ``first`` to ``last`` − 1, sparse float64 [last − first, n]."""
        from scipy import sparse

        places = self._places[self._begin[first] : self._begin[last]]
        rows, columns, weights = [], [], []
        for distance in range(1, self.window + 1):
            for sign in self._signs:
                other = places + sign * distance
                near = (other >= 0) & (other < len(self.items))
                near[near] = self._owner[other[near]] == self._owner[places[near]]
                rows.append(self.items[places[near]] - first)
                columns.append(self.items[other[near]])
                weights.append(np.full(near.sum(), self.weight(distance)))
        parts = (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns)))
        return sparse.coo_matrix(parts, shape=(last - first, self.n)).tocsr()


def row_blocks(entries: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """(first row, row behind the last) of blocks of rows with at most ``most`` ``entries`` [n], or of one row."""
    ends = np.cumsum(entries)
    first = 0
    while first < len(entries):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield first, last
        first = last


def best_of_rows(matrix: csr_matrix, n: int) -> csr_matrix:
    """The ``n`` largest positive values of every row, largest first; of equal ones the smaller column is the better."""
    from scipy import sparse

    kept, lengths = [], np.zeros(matrix.shape[0], np.int64)
    for row in range(matrix.shape[0]):
        places = np.arange(matrix.indptr[row], matrix.indptr[row + 1])
        values = matrix.data[places]
        if len(values) > n:
            lowest = np.partition(values, len(values) - n)[len(values) - n]
            places = places[values >= lowest]
        places = places[matrix.data[places] > 0]
        places = places[np.lexsort((matrix.indices[places], -matrix.data[places]))[:n]]
        kept.append(places)
        lengths[row] = len(places)
    order = np.concatenate(kept) if kept else np.empty(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return sparse.csr_matrix((matrix.data[order], matrix.indices[order], offsets), shape=matrix.shape)
