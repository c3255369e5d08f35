"""Metrics by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from benchmarks.metrics import ndcg_at_k, pass_at_k, position1_pass_at_k, recall_at_k
from onerec.ranking import auc


@pytest.mark.parametrize(
    ("ranked", "answer", "k", "passed", "first", "recall", "ndcg"),
    [
        ([1, 2, 3], [1], 1, 1, 1, 1, 1),
        ([1, 2, 3], [2], 1, 0, 0, 0, 0),
        ([1, 2, 3], [2], 3, 1, 1, 1, 1 / math.log2(3)),
        ([1, 2, 3], [3, 9], 3, 1, 1, 0.5, 0.5 / (1 + 1 / math.log2(3))),
        ([1, 2, 3], [9, 3], 3, 1, 0, 0.5, 0.5 / (1 + 1 / math.log2(3))),
        ([], [1], 10, 0, 0, 0, 0),
        ([1, 2], [1, 1, 2], 2, 1, 1, 1, 1),
    ],
)
def test_ranking_metrics_by_hand(ranked, answer, k, passed, first, recall, ndcg):
    assert pass_at_k(ranked, answer, k) == passed
    assert position1_pass_at_k(ranked, answer, k) == first
    assert recall_at_k(ranked, answer, k) == recall
    assert ndcg_at_k(ranked, answer, k) == pytest.approx(ndcg)


def test_ndcg_equals_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        order, answer = rng.permutation(40), rng.choice(40, 7, replace=False)
        truth, score = np.isin(np.arange(40), answer), np.empty(40)
        score[order] = -np.arange(40)
        assert ndcg_at_k(order.tolist(), answer.tolist(), 10) == pytest.approx(ndcg_score([truth], [score], k=10))


def test_auc_equals_scikit_learns_also_with_ties():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.integers(0, 20, 200)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert math.isnan(auc([1, 1], [0, 1]))
