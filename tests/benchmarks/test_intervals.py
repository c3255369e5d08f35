"""Bootstrap over users and paired tests: against direct computation, and as hand-made results would have it."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.intervals import paired, replicates, values_and_intervals
from benchmarks.results import Scores
from onerec.ranking import auc


def scores(users, **columns):
    users = [str(u) for u in users]
    return Scores([str(i) for i in range(len(users))], users, {k: np.array(v, dtype=float) for k, v in columns.items()})


@pytest.fixture(scope="module")
def labels():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 300)
    label = rng.integers(0, 2, 300)
    return scores(users, label=label, score=np.round(label * 0.5 + rng.normal(size=300), 1))


def test_the_point_estimates_are_the_metrics_themselves(labels):
    y, s = labels.columns["label"], labels.columns["score"]
    values, intervals = values_and_intervals(["auc"], labels)
    assert values["auc"] == pytest.approx(roc_auc_score(y, s)) == pytest.approx(auc(y, s))
    assert intervals["auc"][0] < values["auc"] < intervals["auc"][1]


def test_user_auc_weighs_users_by_samples_and_leaves_out_one_class():
    found = scores("aabbbc", label=[1, 0, 1, 0, 0, 1], score=[2, 1, 0, 1, -1, 5])
    assert values_and_intervals(["user_auc"], found)[0]["user_auc"] == pytest.approx((2 * 1 + 3 * 0.5) / 5)


def test_bits_per_byte():
    found = scores("ab", bits=[3, 5], bytes=[1, 3])
    assert values_and_intervals(["bits_per_byte"], found)[0]["bits_per_byte"] == 2


def test_a_resample_counts_every_sample_of_a_user_as_often_as_the_user_was_drawn(labels):
    from benchmarks.intervals import _index, draws

    users, n = _index(labels.users)
    weights = np.concatenate(list(draws(n, 5, 0, len(users))))
    found = replicates(["auc"], labels, 5)["auc"][1:]
    for row, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(len(users)), row[users].astype(int))
        assert value == pytest.approx(roc_auc_score(labels.columns["label"][rows], labels.columns["score"][rows]))


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_where_users_have_one_sample_each():
    x = np.random.default_rng(1).normal(2, 3, 900)
    values, intervals = values_and_intervals(["m"], scores(range(900), m=x), n_boot=2000)
    half = 1.96 * x.std() / math.sqrt(900)
    assert values["m"] == pytest.approx(x.mean())
    assert intervals["m"] == pytest.approx([x.mean() - half, x.mean() + half], abs=0.02)


def test_samples_of_one_user_do_not_narrow_the_interval():
    x = np.random.default_rng(1).normal(size=50)
    alone = values_and_intervals(["m"], scores(range(50), m=x))[1]["m"]
    repeated = values_and_intervals(["m"], scores(np.repeat(range(50), 20), m=np.repeat(x, 20)))[1]["m"]
    assert repeated == pytest.approx(alone)


def test_unscored_samples_are_left_out_of_the_mean_and_one_user_has_no_interval():
    values, intervals = values_and_intervals(["m"], scores([1, 1, 2], m=[4, math.nan, 2]))
    assert values["m"] == 3 and intervals["m"] == [2, 4]
    assert values_and_intervals(["m"], scores([1, 1], m=[4, 2])) == ({"m": 3}, {})


def test_bits_per_byte_is_the_bits_of_all_texts_over_their_bytes():
    assert values_and_intervals(["bits_per_byte"], scores("ab", bits=[8, 2], bytes=[4, 6]))[0] == {"bits_per_byte": 1}


def test_a_paired_difference_sees_what_two_intervals_would_hide():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    a, b = scores(range(400), m=base), scores(range(400), m=base + 0.05 + 0.01 * rng.normal(size=400))
    result = paired("m", a, b)
    assert result.difference == pytest.approx(0.05, abs=0.01) and 0.04 < result.low < result.high < 0.06
    assert result.p < 0.01 and result.sign_p < 1e-6 and result.better == 400
    assert values_and_intervals(["m"], a)[1]["m"][1] > result.a + 0.05  # the intervals overlap


def test_two_equal_results_do_not_differ():
    a = scores(range(50), m=np.arange(50))
    result = paired("m", a, a)
    assert (result.difference, result.p, result.sign_p, result.better, result.worse) == (0, 1, 1, 0, 0)


def test_the_sign_test_by_hand():
    # Five users better, one worse: two-sided binomial p = 2 · (1 + 6) / 64.
    result = paired("m", scores(range(7), m=[0] * 7), scores(range(7), m=[1, 1, 1, 1, 1, -1, 0]))
    assert (result.better, result.worse) == (5, 1) and result.sign_p == pytest.approx(14 / 64)


def test_only_common_and_scored_samples_are_compared():
    a, b = scores([1, 2, 3], m=[1, 2, math.nan]), scores([1, 2, 3], m=[2, 2, 5])
    b.uuids = ["0", "9", "2"]
    assert (result := paired("m", a, b)).samples == 1 and result.difference == 1
    b.uuids = ["7", "8", "9"]
    assert paired("m", a, b) is None


def test_the_auc_of_two_results_is_compared_on_the_same_resamples(labels):
    better = Scores(labels.uuids, labels.users, labels.columns | {"score": labels.columns["label"]})
    result = paired("auc", labels, better)
    assert result.b == 1 and result.low > 0 and result.p < 0.01 and result.sign_p is None
