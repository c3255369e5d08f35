"""Recommenders by hand where they count, on sequences that have a rule where they are trained."""

import dataclasses
import json
import shutil
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import baselines
from benchmarks.recommenders import RECOMMENDERS, counting, sequential
from benchmarks.recommenders.base import Options, Training
from benchmarks.recommenders.counting import Cooccurrence, ItemKnn, Popularity, nearest
from benchmarks.recommenders.sequential import POOL, _batches, _windows, softmax_loss
from benchmarks.results import load_predictions
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.sid import SidSpec
from onerec.sparse import best_of_rows
from tests.arguments import as_flags

SPEC = SidSpec((8, 8, 8))
SEQUENCES = [([1, 2], [3, 7]), ([2], [3]), ([5], [7])]


@pytest.fixture
def data(tmp_path):
    """One video task of two test users, and the sequences of three training users."""
    rows = [
        {
            "uuid": str(i),
            "source": "s",
            "messages": '[{"role":"user","content":[{"type":"text","text":"q"}]}]',
            "metadata": json.dumps(
                {"uid": i, "answer": SPEC.text([0, 0, answer[0] % 8]), "answer_pid": answer, "history_pid": history}
            ),
        }
        for i, (history, answer) in enumerate([([1, 2], [3, 4]), ([5], [9])])
    ]
    write_table(tmp_path / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    table = {
        "uid": [1, 2, 3],
        "task": ["video"] * 3,
        "history_pid": [h for h, _ in SEQUENCES],
        "target_pid": [t for _, t in SEQUENCES],
    }
    write_table(tmp_path / "train_sequences.parquet", pa.table(table))
    codes = pa.array([[0, 0, p % 8] if p < 8 else [1, 0, p % 8] for p in range(1, 10)], pa.list_(pa.int32()))
    write_table(tmp_path / "video_ad_pid2sid.parquet", pa.table({"pid": list(range(1, 10)), "codes": codes}))
    SPEC.save(tmp_path)
    return tmp_path


def ranked(recommender, histories, n=10, skip=None):
    return recommender.rank(histories, n, skip or [()] * len(histories))


def test_popularity_and_transitions_rank_as_by_hand():
    training = Training(SEQUENCES)
    assert ranked(Popularity(training), [[1, 2], []]) == [[3, 7]] * 2
    assert ranked(Cooccurrence(training), [[1, 2], [5], [], [99]]) == [[3, 7], [7, 3], [3, 7], [3, 7]]
    assert ranked(Cooccurrence(training), [[1, 2]], skip=[{3}]) == [[7]]


def test_item_neighbours_by_hand():
    # Users {1,2,3}, {1,2}, {2,4}: cosine(1,2) = 2/√(2·3), (1,3) = 1/√2, (2,3) = 1/√3 = (2,4).
    training = Training([([1, 2], [3]), ([1], [2]), ([2], [4])])
    knn = ItemKnn(training)
    cosine = {(a, b): knn.similar[knn.row[a], knn.row[b]] for a in (1, 2) for b in (2, 3, 4)}
    assert cosine[1, 2] == pytest.approx(2 / 6**0.5) and cosine[1, 3] == pytest.approx(0.5**0.5)
    assert cosine[2, 4] == pytest.approx(3**-0.5) and cosine[1, 4] == 0
    assert ranked(knn, [[1]])[0][:2] == [2, 3] and ranked(knn, [[1]], 1, [{2}]) == [[3]]


def random_training(seed):
    """Sequences of few items, so that counts and cosines tie; some users have several, some items come twice."""
    rng = np.random.default_rng(seed)
    draw = [
        (rng.integers(0, 40, rng.integers(0, 9)) * 3, rng.integers(0, 40, rng.integers(1, 4)) * 3) for _ in range(60)
    ]
    users = rng.integers(0, 40, 60).tolist()
    return Training([(h.tolist(), t.tolist()) for h, t in draw], users=users)


@pytest.mark.parametrize("block", [1, 50, 1 << 22])
def test_item_neighbours_by_blocks_are_those_of_the_whole_matrix(monkeypatch, block):
    """And no block is larger than it may be, but for a single row."""
    held = []

    def best(matrix, n):
        held.append(matrix.shape[0] == 1 or matrix.nnz <= block)
        return best_of_rows(matrix, n)

    monkeypatch.setattr(counting, "BLOCK", block)
    monkeypatch.setattr(counting, "best_of_rows", best)
    for seed, kept in ((0, 3), (1, 100)):
        training = random_training(seed)
        similar, items = nearest(training, kept)
        assert items.tolist() == training.items()
        taken = np.zeros((max(training.users) + 1, len(items)))
        for user, (history, targets) in zip(training.users, training.sequences, strict=True):
            taken[user, np.searchsorted(items, [*history, *targets])] = 1
        norm = 1 / np.sqrt(taken.sum(0))
        cosine = norm[:, None] * (taken.T @ taken) * norm
        np.fill_diagonal(cosine, 0)
        order = np.lexsort((np.broadcast_to(np.arange(len(items)), cosine.shape), -cosine))[:, :kept]
        expected = np.zeros_like(cosine)
        np.put_along_axis(expected, order, np.take_along_axis(cosine, order, 1), 1)
        np.testing.assert_array_equal(similar.toarray(), expected)
    assert all(held) and (len(held) == 2) == (block == 1 << 22)


def test_transitions_are_those_of_counting_all_pairs():
    for seed in range(3):
        training = random_training(seed)
        follows = defaultdict(Counter)
        for history, targets in training.sequences:
            items = [*history, *targets]
            for place, pid in enumerate(items):
                follows[pid].update(items[place + 1 : place + 6])
        popular = training.target_counts()
        learnt = Cooccurrence(training)
        for last in range(-1, 121):
            first = sorted(follows[last], key=lambda pid: (-follows[last][pid], -popular[pid], pid))
            rest = [pid for pid in sorted(popular, key=lambda pid: (-popular[pid], pid)) if pid not in first]
            assert ranked(learnt, [[7, last]], 50, [{6, 9}]) == [[p for p in first + rest if p not in (6, 9)]]


def test_validation_sequences_stop_a_training_and_cost_it_no_user():
    training = Training(SEQUENCES * 20)
    rest, held = training.split(0)
    assert len(held) == 6 and len(rest.sequences) == 54
    training = Training(SEQUENCES * 20, validation=[([1], [2])])
    assert training.split(0) == (training, [([1], [2])])


def test_a_users_sequence_that_begins_a_longer_one_is_learnt_once():
    training = Training([([1], [2]), ([1, 2], [3]), ([1], [2])], users=["a", "a", "b"])
    assert training.whole() == [[1, 2, 3], [1, 2]]


def test_windows_predict_every_item_once_and_behind_a_long_history():
    for n, size in ((2, 4), (5, 4), (6, 4), (30, 8), (31, 8), (9, 1)):
        ids = list(range(1, n + 1))
        found = [(known, run) for run, known in _windows(ids, size)]
        predicted = [x for known, run in found for x in run[1 + known :]]
        assert predicted == ids[1:] and all(len(run) <= size + 1 for _, run in found)
        for known, run in found[1:]:  # of every later target at least three quarters of the size are seen
            assert len(run) == size + 1 and known >= size - max(1, size // 4)
    assert list(_windows([7], 4)) == []


def test_batches_hold_every_window_once_about_as_many_items_each_and_windows_of_about_one_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 50, 1000)
    batches = _batches(lengths, 16, rng)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert np.mean([np.ptp(lengths[b]) for b in batches]) < 2 * 50 / POOL
    items = np.array([lengths[b].sum() for b in batches])
    assert items.max() < 16 * lengths.mean() + 50 and np.median(items) > 0.8 * 16 * lengths.mean()
    assert sum(map(len, _batches(lengths[:5], 16, rng))) == 5


def test_a_softmax_over_drawn_items_stands_for_the_one_over_all():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    hidden, target = 0.5 * torch.randn(20, 8), torch.randint(0, 400, (20,))
    items = torch.randn(400, 8, requires_grad=True)
    exact = torch.nn.functional.cross_entropy(hidden @ items.T, target)
    assert softmax_loss(hidden, items, target, 400) == exact
    # Items that are all alike leave nothing to chance: any draw gives the logarithm of how many there are.
    same = torch.ones(400, 8)
    assert float(softmax_loss(hidden, same, target, 10)) == pytest.approx(np.log(400), rel=1e-5)
    draws = torch.stack([softmax_loss(hidden, items, target, 150) for _ in range(200)])
    assert float(draws.mean().detach()) == pytest.approx(float(exact.detach()), rel=0.03)
    mean = torch.autograd.grad(draws.mean(), items)[0]
    whole = torch.autograd.grad(exact, items)[0]
    assert torch.nn.functional.cosine_similarity(mean.ravel(), whole.ravel(), dim=0) > 0.98
    # Where every item is a target, none is left to draw.
    every = torch.arange(400)
    assert torch.isfinite(softmax_loss(torch.randn(400, 8), items, every, 10))


# At 1e-2 it is chance, by seed and machine, whether tiger learns; at 3e-3 it always did (seeds 0, 1 and 2).
@pytest.mark.parametrize(("name", "lr"), [("sasrec", 1e-2), ("gru4rec", 1e-2), ("tiger", 3e-3)])
def test_what_is_trained_learns_a_rule_and_the_same_seed_gives_the_same_ranking(name, lr):
    # Item i is followed by i + 1 modulo 40, which no count of targets says.
    starts = np.random.default_rng(0).integers(0, 40, 200)
    sequences = [([(s + i) % 40 for i in range(5)], [(s + 5) % 40]) for s in starts.tolist()]
    index = ItemIndex(np.arange(40), np.array([[p % 8, p // 8, 0] for p in range(40)], np.int32), SPEC)
    training = Training(sequences, index)
    options = Options(epochs=12, patience=12, lr=lr, dim=32, dropout=0.0, tiger_dim=32, tiger_layers=2, batch_size=16)
    learnt = RECOMMENDERS[name](training, options)
    assert [r[0] for r in ranked(learnt, [[3, 4, 5], [38, 39]])] == [6, 0]
    short = dataclasses.replace(options, epochs=1)
    one, two = (ranked(RECOMMENDERS[name](training, short), [[3, 4, 5]]) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_what_has_learnt_nothing_is_not_measured(name):
    training = Training([([1, 2, 3], [4]), ([2, 3], [4])] * 8)
    with pytest.raises(InputError, match=f"{name}: learns nothing: its loss is (nan|inf); a smaller --lr"):
        RECOMMENDERS[name](training, Options(epochs=4, lr=1e30, dim=32, dropout=0.0))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--epochs", "0"], "--epochs: is 0"),
        (["--dropout", "2"], "--dropout: is 2; give a number from 0 to below 1"),
        (["--seed", "-1"], "--seed: is -1"),
        (["--negatives", "0"], "--negatives: is 0"),
        (["--lr", "nan"], "--lr: is nan"),
        (["--dim", "63"], "--dim: is 63; a multiple of the 2 attention heads"),
        (["--device", "meta"], "--device: meta is not there"),
    ],
)
def test_settings_that_train_nothing_are_refused_before_anything_is_written(data, tmp_path, flags, said):
    with pytest.raises(InputError, match=said):
        baselines.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "r"), "--baselines", "sasrec", *flags])
    assert not (tmp_path / "r").exists()


def test_the_users_of_a_validation_folder_stop_the_training(data, tmp_path, monkeypatch):
    validation = tmp_path / "validation"
    shutil.copytree(data, validation, ignore=shutil.ignore_patterns("validation"))
    stopped_by = []
    monkeypatch.setattr(sequential, "mean_ndcg", lambda recommender, rows, unseen: stopped_by.append(rows) or 0.0)
    flags = as_flags(data_dir=data, output_dir=tmp_path / "r", baselines=["popularity", "sasrec"], epochs=1)
    baselines.main([*flags, "--validation_dir", str(validation)])
    assert stopped_by == [[([1, 2], [3, 4]), ([5], [9])]]
    table = pa.table({"pid": [1, 2], "codes": pa.array([[0, 0, 1], [0, 0, 2]], pa.list_(pa.int32()))})
    write_table(validation / "video_ad_pid2sid.parquet", table)
    with pytest.raises(InputError, match="validation: has other SIDs than the test data"):
        baselines.main([*flags, "--validation_dir", str(validation)])


def test_baselines_write_what_evaluate_does(data, tmp_path):
    baselines.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "r"), "--bootstrap", "50"])
    folder = tmp_path / "r" / "results_cooccurrence"
    value = json.loads((folder / "metrics.json").read_text())
    assert value["tasks"]["video"]["recall@10"] == 0.25 and value["tasks"]["video"]["pass@1"] == 0.5
    assert value["tasks"]["video"]["sid_pass@1"] == 0.5 and value["data"]["tests"]["video"]
    assert value["intervals"]["video"]["pass@1"] == [0, 1]
    baselines.main(as_flags("--also_exclude_seen", data_dir=data, output_dir=tmp_path / "r", bootstrap=50))
    both = [load_predictions(tmp_path / "r" / f"results_popularity{end}", "video") for end in ("", "_unseen")]
    assert [[line["uuid"] for line in lines] for lines in both] == [[line["uuid"] for line in both[0]]] * 2
    assert not any({1, 2, 5} & set(line["items"]) for line in both[1])
    settings = json.loads((tmp_path / "r" / "results_popularity_unseen" / "metrics.json").read_text())
    assert settings["config"]["exclude_seen"] == "True"
    names = {path.name for path in folder.iterdir()}
    assert names == {"metrics.json", "manifest.json", "predictions_video.jsonl", "scores_video.parquet"}


@pytest.mark.parametrize("device", ["cudda", "cuda"])
def test_a_device_that_is_not_there_is_said_before_anything_is_written(data, tmp_path, device, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device: {device} is not there"):
        baselines.main(
            as_flags(data_dir=data, output_dir=tmp_path / "r", baselines=["popularity", "sasrec"], device=device)
        )
    assert not (tmp_path / "r").exists()


def test_a_task_without_training_users_is_refused(data, tmp_path):
    table = {"uid": [1], "task": ["ad"], "history_pid": [[1]], "target_pid": [[2]]}
    write_table(data / "train_sequences.parquet", pa.table(table))
    with pytest.raises(InputError, match="has no row of video"):
        baselines.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "r")])


class Backwards:
    """The last items of the history, latest first."""

    def __init__(self, training, options):
        self.known = training.items()

    def rank(self, histories, n, skip):
        return [[pid for pid in reversed(h) if pid not in s][:n] for h, s in zip(histories, skip, strict=True)]


def test_a_new_recommender_is_a_class_and_a_row(data, tmp_path, monkeypatch):
    monkeypatch.setitem(RECOMMENDERS, "backwards", Backwards)
    baselines.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "r"), "--baselines", "backwards"])
    assert [line["items"] for line in load_predictions(tmp_path / "r/results_backwards", "video")] == [[2, 1], [5]]
