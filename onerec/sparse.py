"""Item by item matrices, too large to be made whole: a block of rows at a time, the best of each kept; and vectors."""

from __future__ import annotations

from collections.abc import Iterator
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
    """The rows of a sparse ``matrix`` [n, m] by truncated SVD: float32 [n, dim] of length one, zeros past its rank."""
    from sklearn.decomposition import TruncatedSVD

    rank = min(dim, min(matrix.shape) - 1)
    vectors = TruncatedSVD(rank, n_iter=n_iter, random_state=seed).fit_transform(matrix)
    return unit(np.pad(vectors, ((0, 0), (0, dim - rank))))


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
