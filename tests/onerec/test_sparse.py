"""Blocks of rows and the best of each row."""

import numpy as np
from scipy import sparse

from onerec.sparse import best_of_rows, row_blocks


def test_blocks_hold_as_many_rows_as_fit_or_one():
    assert list(row_blocks(np.array([3, 3, 4, 9, 1, 0, 9]), 9)) == [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]
    assert list(row_blocks(np.array([5, 4, 9]), 9)) == [(0, 2), (2, 3)]
    assert list(row_blocks(np.array([20, 20]), 9)) == [(0, 1), (1, 2)]
    assert list(row_blocks(np.array([], np.int64), 9)) == []


def test_the_best_of_a_row_are_positive_and_equal_ones_come_by_column():
    rows = [[1, 3, 3, 2, 3], [0, -1, 0, 0, 0], [0, 0, 0, 5, 1], [4, 4, 4, 4, 4]]
    best = best_of_rows(sparse.csr_matrix(np.array(rows, float)), 2)
    assert best.toarray().tolist() == [[0, 3, 3, 0, 0], [0] * 5, [0, 0, 0, 5, 1], [4, 4, 0, 0, 0]]
    assert best.indices.tolist() == [1, 2, 3, 4, 0, 1]
    none = best_of_rows(sparse.csr_matrix((0, 5)), 2)
    assert none.shape == (0, 5) and none.nnz == 0
