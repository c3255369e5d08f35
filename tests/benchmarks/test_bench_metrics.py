"""Metrics by hand and against scikit-learn; baselines; the report."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from benchmarks import baselines, report
from benchmarks.metrics import (
    auc,
    bits_per_byte,
    ndcg_at_k,
    pass_at_k,
    position1_pass_at_k,
    recall_at_k,
    weighted_user_auc,
)
from benchmarks.tasks import TASKS, load_examples
from onerec.errors import InputError
from onerec.parquet import write_table


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
        assert ndcg_at_k(order.tolist(), answer.tolist(), 10) == pytest.approx(
            ndcg_score([truth], [score], k=10)
        )


def test_auc_equals_scikit_learns_also_with_ties():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.integers(0, 20, 200)
    assert auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    assert math.isnan(auc([1, 1], [0, 1]))


def test_user_auc_weighs_users_by_samples_and_leaves_out_one_class():
    users, labels, scores = ["a", "a", "b", "b", "b", "c"], [1, 0, 1, 0, 0, 1], [2, 1, 0, 1, -1, 5]
    assert weighted_user_auc(users, labels, scores) == pytest.approx((2 * 1 + 3 * 0.5) / 5)


def test_bits_per_byte():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2)


@pytest.fixture
def data(tmp_path):
    """One video task of two test users, and the sequences of three training users."""
    rows = [
        {"uuid": str(i), "source": "s", "messages": '[{"role":"user","content":[{"type":"text","text":"q"}]}]',
         "metadata": json.dumps({"uid": i, "answer": "", "answer_pid": answer, "history_pid": history})}
        for i, (history, answer) in enumerate([([1, 2], [3, 4]), ([5], [9])])
    ]  # fmt: skip
    write_table(tmp_path / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    sequences = [([1, 2], [3, 7]), ([2], [3]), ([5], [7])]
    table = {
        "uid": [1, 2, 3],
        "task": ["video"] * 3,
        "history_pid": [h for h, _ in sequences],
        "target_pid": [t for _, t in sequences],
    }
    write_table(tmp_path / "train_sequences.parquet", pa.table(table))
    return tmp_path


def test_baselines_rank_as_by_hand(data):
    sequences = baselines.load_sequences(data, "video")
    first, second = load_examples(data, TASKS["video"])
    assert baselines.popularity_ranker(sequences)(first) == [3, 7]
    rank = baselines.cooccurrence_ranker(sequences)
    assert rank(first) == [3, 7] and rank(second) == [7, 3]


def test_baselines_write_their_metrics(data, tmp_path):
    baselines.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "r")])
    value = json.loads((tmp_path / "r" / "results_cooccurrence" / "metrics.json").read_text())
    assert value["tasks"]["video"]["recall@10"] == 0.25 and value["tasks"]["video"]["pass@1"] == 0.5


def test_a_test_file_without_answers_is_refused(data):
    rows = [{"uuid": "1", "source": "s", "messages": "[]", "metadata": "{}"}]
    write_table(data / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    with pytest.raises(InputError, match="row 0 has no usable answer"):
        load_examples(data, TASKS["video"])


def result(folder, name, recall, em):
    path = folder / f"results_{name}" / "metrics.json"
    path.parent.mkdir(parents=True)
    tasks = {"general": {"exact_match": em, "bits_per_byte": 1.5}}
    if recall is not None:
        tasks["video"] = {"recall@10": recall, "ndcg@10": recall, "pass@1": recall}
    path.write_text(json.dumps({"name": name, "config": {}, "tasks": tasks}))
    return str(path.parent)


def test_the_report_says_gains_losses_and_ratios(tmp_path, capsys):
    base, sft, pop = (
        result(tmp_path, n, r, e)
        for n, r, e in (("base", None, 0.8), ("sft", 0.3, 0.5), ("popularity", 0.1, 0))
    )
    log = tmp_path / "train_log.jsonl"
    log.write_text(
        "".join(json.dumps({"step": i, "loss": 3 - i / 10, "itemic_loss": None}) + "\n" for i in range(1, 5))
    )
    report.main(
        [
            "--results",
            base,
            sft,
            "--labels",
            "base <LLM>",
            "SFT",
            "--baselines",
            pop,
            "--train_logs",
            f"SFT={log}",
            "--output_dir",
            str(tmp_path / "out"),
        ]
    )
    out = capsys.readouterr().out
    assert "video: recall@10 0.3000, 3.00 times the better baseline (0.1000)" in out
    assert "general EM 0.8000 → 0.5000 (-0.3000)" in out
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| SFT | **0.3000** |" in markdown and "| base <LLM> | – |" in markdown
    page = (tmp_path / "out" / "report.html").read_text()
    assert "base &lt;LLM&gt;" in page and "<polyline" in page and "http" not in page.replace("http-equiv", "")
    assert (
        json.loads((tmp_path / "out" / "report.json").read_text())["rows"][1]["tasks"]["video"]["recall@10"]
        == 0.3
    )


def test_report_bad_input(tmp_path):
    good = result(tmp_path, "a", 0.1, 0.1)
    for argv, match in (
        (["--results", str(tmp_path / "none")], "no such file"),
        (["--results", good, "--labels", "a", "b"], "--labels: are 2 for 1 results"),
        (["--results", good, "--train_logs", "x"], "x has no ="),
    ):
        with pytest.raises(InputError, match=match):
            report.main([*argv, "--output_dir", str(tmp_path / "out")])
