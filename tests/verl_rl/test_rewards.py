"""Rewards on answers worked out by hand. The spec has two layers of 4 and 3 codes."""

from __future__ import annotations

import itertools

import pytest

from onerec.errors import InputError
from onerec.ranking import recall_at_k
from onerec.render import RENDERERS
from onerec.sid import SidSpec
from verl_rl import rewards

SPEC = SidSpec((4, 3))
EMPTY = "<think>\n\n</think>\n\n"


def sid(*codes):
    return SPEC.format(codes)


@pytest.mark.parametrize(
    ("text", "found", "why", "thinking"),
    [
        (EMPTY + sid(1, 2), (1, 2), None, ""),
        (EMPTY + sid(1, 2) + "<|im_end|>\n", (1, 2), None, ""),
        (EMPTY + sid(1, 2) + "<|endoftext|>" + sid(1, 1), (1, 2), None, ""),
        ("<think>\nhm\n</think>\n\n" + sid(0, 0), (0, 0), None, "hm"),
        (sid(3, 1), (3, 1), None, None),
        ("<think>\nhm " + sid(1, 2), None, "thinking_open", None),
        (EMPTY + "a film", None, "no_sid", ""),
        (EMPTY + sid(1, 7), None, "sid_broken", ""),
        (EMPTY + "<|sid_begin|><s_a_1><|sid_end|>", None, "sid_broken", ""),
        (EMPTY + sid(1, 2) + sid(1, 1), None, "sid_extra", ""),
        (EMPTY + "Try " + sid(1, 2), None, "sid_extra", ""),
        ("", None, "no_sid", None),
    ],
)
def test_an_answer_is_one_sid_or_malformed_for_a_reason(text, found, why, thinking):
    answer = rewards.parse_answer(RENDERERS["qwen3"].as_record(text), SPEC)
    assert (answer.sid, answer.malformed, answer.thinking) == (found, why, thinking)


@pytest.mark.parametrize(
    ("text", "thinking", "value"),
    [
        (EMPTY + "x", False, 1),
        (EMPTY + "x", True, 0),
        ("<think>\nhm\n</think>\n\nx", True, 1),
        ("<think>\nhm\n</think>\n\nx", False, 0),
        ("<think>\nhm\n</think>\n\n", True, 0),
        ("x", False, 0),
        ("<think>\nhm", True, 0),
        ("oh <think>\nhm\n</think>x", True, 0),
        (EMPTY + EMPTY + "x", False, 0),
    ],
)
def test_think_format(text, thinking, value):
    assert rewards.think_format(text, thinking) == value


def test_hits():
    truth = [(1, 2), (3, 0)]
    assert [rewards.full_hit(s, truth) for s in [(1, 2), (1, 1), (3, 0), None]] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ((1, 2, 3), 1.0),
        ((1, 2, 0), 2 / 3),
        ((1, 0, 3), 1 / 3),
        ((0, 2, 3), 0.0),
        ((4, 5, 0), 2 / 3),
        (None, 0.0),
    ],
)
def test_partial_hit_counts_layers_from_the_first_on(answer, value):
    assert rewards.partial_hit(answer, [(1, 2, 3), (4, 5, 6)], 3) == pytest.approx(value)


def test_group_rewards():
    assert rewards.pass_rate([1, 0, 0, 1]) == 0.5 and rewards.pass_rate([]) == 0
    assert rewards.pass_at_1([0, 1]) == 0 and rewards.pass_at_1([1, 0]) == 1 and rewards.pass_at_1([]) == 0


def test_rank_aware_takes_most_from_the_highest_miss():
    # Misses at ranks 0 and 2 weigh 1/log2(2) = 1 and 1/log2(4) = 0.5: -2/3 and -1/3.
    assert rewards.rank_aware([0, 1, 0]) == pytest.approx([-2 / 3, 1, -1 / 3])
    assert rewards.rank_aware([1, 1]) == [1, 1]


def test_a_group_is_scored_by_the_weighted_sum_and_every_part_is_returned():
    texts = [EMPTY + sid(1, 2), EMPTY + sid(1, 1), EMPTY + "no", EMPTY + sid(0, 0)]
    rows = rewards.score_group(
        texts, sid(1, 2) + sid(3, 0), SPEC, {"full_hit": 1.0, "partial_hit": 0.5, "pass_rate": 2.0}, False
    )
    # pass_rate 1/4 for all: 1 + 0.5 + 0.5; 0 + 0.25 + 0.5; malformed 0; 0 + 0 + 0.5.
    assert [row["score"] for row in rows] == pytest.approx([2.0, 0.75, 0.0, 0.5])
    assert [row["pass_at_1"] for row in rows] == [1, 1, 1, 1]
    assert [row["malformed/no_sid"] for row in rows] == [0, 0, 1, 0]
    assert [row["valid_sid"] for row in rows] == [1, 1, 0, 1]
    assert set(rewards.REWARDS) <= set(rows[0])


WEIGHTS = [
    *({name: 1.0} for name in rewards.REWARDS),
    {name: 1.0 for name in rewards.REWARDS},
    {"full_hit": 1.0, "partial_hit": 1.0, "rank_aware": 0.1},
    {"full_hit": 1.0, "rank_aware": 2.0, "think_format": 0.5},
    {"full_hit": 1.0, "pass_rate": -0.5, "rank_aware": -0.25},
]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_nothing_malformed_scores_above_anything_well_formed(weights):
    """Every group of three of a hit, a partial hit, a miss and each malformed SID, under each reward and sums."""
    good = [sid(1, 2), sid(1, 1), sid(0, 0)]
    bad = ["<think>\nhm", "no", sid(1, 7), sid(1, 2) + sid(1, 2)]
    kinds = [EMPTY + text for text in good] + [bad[0], *(EMPTY + text for text in bad[1:])]
    wrong, malformed = [], []
    for texts in itertools.product(kinds, repeat=3):
        rows = rewards.score_group(list(texts), sid(1, 2), SPEC, weights, False)
        wrong += [row["score"] for row in rows if row["valid_sid"]]
        malformed += [row["score"] for row in rows if not row["valid_sid"]]
    assert max(malformed) <= min(wrong)


def test_a_malformed_answer_costs_what_all_misses_cost_together():
    texts = [EMPTY + "no", EMPTY + sid(1, 1), EMPTY + sid(0, 0)]
    rows = rewards.score_group(texts, sid(1, 2), SPEC, {"full_hit": 1.0, "rank_aware": 0.5}, False)
    # The misses at ranks 1 and 2 of three: 1/log2(3) = 0.631 and 0.5, of 2.131 in all.
    assert [row["rank_aware"] for row in rows] == pytest.approx([-1, -0.296, -0.2346], abs=1e-3)
    assert [row["score"] for row in rows] == pytest.approx([-0.5, -0.148, -0.1173], abs=1e-3)
    assert rewards.lowest_score({"full_hit": 1.0, "rank_aware": 0.5}) == -0.5


def test_thinking_that_the_rollout_had_to_close_is_not_well_formed():
    text = ["<think>\nhm\n</think>\n\n" + sid(1, 2)]
    for well_formed, value in ((True, 1.0), (False, 0.0)):
        row = rewards.score_group(text, sid(1, 2), SPEC, {"think_format": 1.0}, True, well_formed)[0]
        assert row["think_format"] == row["score"] == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("full_hits=1", "full_hits is not a reward; of think_format, full_hit"),
        ("full_hit=much", "full_hit has weight 'much'; a number"),
        ("full_hit=nan", "full_hit has weight nan"),
        ("", "are all 0"),
        ("full_hit=0", "are all 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(text, words):
    with pytest.raises(InputError, match=words):
        rewards.parse_weights(text)


def test_weights_are_read():
    assert rewards.parse_weights("full_hit=1, rank_aware=0.5") == {"full_hit": 1.0, "rank_aware": 0.5}


def test_ranking_metrics():
    ranked, truth = [(0, 0), (1, 1), (2, 2)], [(1, 1), (3, 2)]
    assert rewards.ranking_metrics(ranked, truth, (1, 2)) == {
        "pass@1": 0,
        "pass@2": 1,
        "recall@1": 0,
        "recall@2": 0.5,
    }
    assert recall_at_k(ranked, [], 1) == 0
    # A malformed answer is a miss in its place.
    assert rewards.ranking_metrics([None, (1, 1)], truth, (1, 2)) == {
        "pass@1": 0,
        "pass@2": 1,
        "recall@1": 0,
        "recall@2": 0.5,
    }
