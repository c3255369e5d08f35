"""Decayed transitions are what a naive loop over all pairs gives, whatever the blocks."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from onerec import transitions
from onerec.sparse import best_of_rows
from onerec.transitions import BACK, DECAY, LAST, SOURCE_POWER, TARGET_POWER, WINDOW, Transitions, best_first


def random_sequences(seed):
    """Few items of large numbers, so that they come again; some sequences are empty or of one item."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 30, n) * 1_000_003).tolist() for n in rng.integers(0, 15, 60)]


def naive(sequences):
    """Item to follower to score, by the formula."""
    counts = Counter(pid for items in sequences for pid in items)
    found = defaultdict(Counter)
    for items in sequences:
        for i, a in enumerate(items):
            for j in range(i + 1, min(i + WINDOW, len(items) - 1) + 1):
                found[a][items[j]] += DECAY ** (j - i - 1)
    return {
        a: {b: v / counts[a] ** SOURCE_POWER / counts[b] ** TARGET_POWER for b, v in row.items()}
        for a, row in found.items()
    }


def learnt(sequences, **options):
    return Transitions.learn(np.concatenate(sequences).astype(np.int64), list(map(len, sequences)), **options)


def as_rows(found):
    table = found.matrix.toarray()
    return {
        int(pid): {int(found.pids[column]): table[row, column] for column in np.flatnonzero(table[row])}
        for row, pid in enumerate(found.pids)
    }


@pytest.mark.parametrize("block", [1, 40, 1 << 22])
def test_transitions_by_blocks_are_those_of_a_naive_loop(monkeypatch, block):
    held = []

    def best(matrix, n):
        held.append(matrix.shape[0] == 1 or matrix.nnz <= block)
        return best_of_rows(matrix, n)

    monkeypatch.setattr(transitions, "BLOCK", block)
    monkeypatch.setattr(transitions, "best_of_rows", best)
    for seed in range(2):
        sequences = random_sequences(seed)
        expected, found = naive(sequences), as_rows(learnt(sequences))
        assert {pid for pid, row in found.items() if row} == set(expected)
        for pid, row in expected.items():
            assert found[pid] == pytest.approx(row, rel=1e-6)
    assert all(held)


def test_of_an_item_the_best_followers_are_kept():
    sequences = random_sequences(0)
    whole, few = as_rows(learnt(sequences)), as_rows(learnt(sequences, kept=3))
    for pid, row in whole.items():
        best = sorted(row, key=lambda b: (-row[b], b))[:3]
        assert sorted(few[pid].values()) == pytest.approx(sorted(row[b] for b in best))


def test_a_history_is_scored_by_its_last_items():
    sequences = random_sequences(3)
    expected, found = naive(sequences), learnt(sequences)
    unknown = 17
    for history in ([], [unknown], *sequences, [*sequences[4], unknown], [0, 0, 0]):
        total = Counter()
        for step, pid in enumerate(history[::-1][:LAST]):
            for other, value in expected.get(pid, {}).items():
                total[other] += BACK**step * value
        pids, scores = found.score(history)
        assert pids.tolist() == sorted(total)
        assert scores == pytest.approx([total[pid] for pid in pids.tolist()], rel=1e-6)


def test_equal_scores_come_by_pid():
    assert best_first(np.array([5, 7, 9, 2]), np.array([1.0, 3.0, 1.0, 1.0])).tolist() == [1, 3, 0, 2]


def test_nothing_to_count_is_an_empty_table():
    for sequences in ([], [[]], [[4], [], [5]]):
        flat = np.array([pid for items in sequences for pid in items], np.int64)
        found = Transitions.learn(flat, list(map(len, sequences)))
        assert [len(part) for part in found.score([4])] == [0, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Beauty", [0.0603, 0.0450, 0.0808, 0.0516]), ("Toys_and_Games", [0.0706, 0.0539, 0.0912, 0.0605])],
)
def test_the_reference_on_amazon(shared_data, name, expected):
    """Recall@5, NDCG@5, Recall@10 and NDCG@10, the history left out; the order of equal scores moves a few 0.0001."""
    lines = shared_data(f"amazon2014/{name}.txt").read_text().splitlines()
    sequences = [[int(word) for word in line.split()[1:]] for line in lines]
    found = learnt([items[:-2] for items in sequences])
    totals = np.zeros(4)
    for *history, target in sequences:
        pids, scores = found.score(history)
        order = pids[best_first(pids, scores)]
        place = np.flatnonzero(order[~np.isin(order, history)][:10] == target)
        if len(place):
            gain = 1 / np.log2(place[0] + 2)
            totals += [place[0] < 5, gain * (place[0] < 5), 1, gain]
    assert (totals / len(sequences)).tolist() == pytest.approx(expected, abs=3e-4)
