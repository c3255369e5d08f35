"""The Amazon 2014 adapter, leave-one-out with windows, and embeddings from co-occurrence."""

import gzip
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.adapters.amazon2014 import main as amazon
from data.adapters.release import split_rows
from data.cooccurrence import SMOOTHING, ppmi
from data.cooccurrence import main as cooccurrence
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.sparse import Pairs
from tokenizer.embed_items import main as embed


def release(folder):
    rows = pq.read_table(folder / "onerec_data" / "onerec_bench_release.parquet").to_pylist()
    return {(row["uid"], row["split"], row["window"]): row for row in rows}


def test_leave_one_out_keeps_the_last_two_from_training():
    rows = list(split_rows([1, 2, 3, 4, 5, 6], n_targets=2, windows=1, validation=True))
    assert rows == [(0, 0, [1, 2], [3, 4]), (1, 0, [1, 2, 3, 4, 5], [6]), (2, 0, [1, 2, 3, 4], [5])]


def test_windows_make_every_item_but_the_first_a_target_once():
    rows = [row for row in split_rows(list(range(10)), 3, -1, False) if row[0] == 0]
    assert rows == [(0, 0, [0, 1, 2, 3, 4, 5], [6, 7, 8]), (0, 1, [0, 1, 2], [3, 4, 5]), (0, 2, [0], [1, 2])]
    assert len([r for r in split_rows(list(range(10)), 3, 2, False) if r[0] == 0]) == 2


@pytest.fixture
def sequences(tmp_path):
    (tmp_path / "s.txt").write_text("1 5 6 7 8\n2 5 6\n3 7 5 6 8 9\nx y\n")
    (tmp_path / "a.json").write_text('{"5": [1, 2], "6": [2]}')
    return [
        "--sequences",
        str(tmp_path / "s.txt"),
        "--attributes",
        str(tmp_path / "a.json"),
        "--output_dir",
        str(tmp_path / "out"),
    ]


def test_sequence_files(sequences, tmp_path, capsys):
    amazon([*sequences, "--max_bad_ratio", "0.3"])
    rows = release(tmp_path / "out")
    assert set(rows) == {(u, s, 0) for u in (1, 3) for s in (0, 1, 2)}
    assert rows[1, 0, 0]["hist_video_pid"] == [5] and rows[1, 0, 0]["target_video_pid"] == [6]
    assert rows[3, 1, 0]["hist_video_pid"] == [7, 5, 6, 8] and rows[3, 1, 0]["target_video_pid"] == [9]
    assert "hist_video_like" not in rows[1, 0, 0], "no stars, no masks"
    captions = pq.read_table(tmp_path / "out" / "onerec_data" / "pid2caption.parquet").to_pylist()
    assert captions[0] == {"pid": 5, "dense_caption": "类别：属性1、属性2。", "tags": ["属性1", "属性2"]}
    assert captions[4]["dense_caption"] == "商品9。"
    assert "1 (user with fewer than 4 items)" in (out := capsys.readouterr().out) and "1 (line is not a user" in out
    assert "3 (item without attributes: kept" in out
    (tmp_path / "a.json").write_text('{"B005": [1, 2]}')
    with pytest.raises(InputError, match=r"a\.json: has no attribute of any item of the sequences; .* such as 5"):
        amazon([*sequences, "--max_bad_ratio", "0.3"])


REVIEWS = [
    ("b", "X", 5, 30),
    ("b", "Y", 1, 10),
    ("b", "Z", 3, 10),
    ("b", "Y", 5, 40),
    ("b", "W", 4, 50),
    ("a", "X", 2, 1),
]


def write_raw(folder, broken=()):
    lines = [json.dumps({"reviewerID": u, "asin": i, "overall": s, "unixReviewTime": t}) for u, i, s, t in REVIEWS]
    with gzip.open(folder / "reviews.json.gz", "wt") as file:
        file.write("\n".join([*lines, *broken]))
    meta = "{'asin': 'X', 'title': 'Soap', 'brand': 'B', 'categories': [['Beauty', 'Bath', 'Soaps']]}"
    (folder / "meta.json").write_text(meta + '\n{"asin": "other"}\n')
    return [
        "--reviews",
        str(folder / "reviews.json.gz"),
        "--metadata",
        str(folder / "meta.json"),
        "--output_dir",
        str(folder / "out"),
    ]


def test_raw_reviews_are_ordered_by_time_and_carry_masks(tmp_path):
    amazon(write_raw(tmp_path))
    names = {
        row["name"]: row["id"]
        for row in pq.read_table(tmp_path / "out" / "onerec_data" / "item_ids.parquet").to_pylist()
    }
    assert names == {"W": 1, "X": 2, "Y": 3, "Z": 4}
    row = release(tmp_path / "out")[2, 1, 0]
    assert row["hist_video_pid"] == [names["Y"], names["Z"], names["X"]] and row["target_video_pid"] == [names["W"]]
    assert row["hist_video_longview"] == [0, 1, 1] and row["hist_video_follow"] == [0, 0, 1]
    assert row["hist_video_not_interested"] == [1, 0, 0] and row["target_video_like"] == [1]
    captions = pq.read_table(tmp_path / "out" / "onerec_data" / "pid2caption.parquet").to_pylist()
    assert captions[1] == {
        "pid": 2,
        "dense_caption": "商品《Soap》，品牌：B，类别：Bath、Soaps。",
        "tags": ["Bath", "Soaps"],
    }
    amazon([*write_raw(tmp_path), "--prompts", "en"])
    captions = pq.read_table(tmp_path / "out" / "onerec_data" / "pid2caption.parquet").to_pylist()
    assert captions[1]["dense_caption"] == "Soap; brand: B; category: Bath, Soaps."


def test_bad_lines_and_half_a_gzip_file_are_said(tmp_path, capsys):
    argv = write_raw(tmp_path, broken=["{", '{"asin": "X"}'])
    with pytest.raises(InputError, match="1 of 8 rows are bad"):
        amazon(argv)
    amazon([*argv, "--max_bad_ratio", "0.5"])
    assert "1 (line does not parse), 1 (review without user, item or time)" in capsys.readouterr().out
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InputError, match="is not a whole gzip file"):
        amazon([*argv, "--max_bad_ratio", "1"])


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--n_targets", "0"], "--n_targets"),
        (["--windows", "0"], "--windows"),
        (["--reviews", "x"], "both given"),
    ],
)
def test_flags_that_make_no_split_are_one_line(sequences, more, match):
    with pytest.raises(InputError, match=match):
        amazon([*sequences, *more])


def test_sequences_as_json(sequences, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"1": [5, 6, 7, 8], "3": [7, 5, 6, 8, 9]}))
    amazon([*sequences, "--max_bad_ratio", "0.3"])
    lines = release(tmp_path / "out")
    amazon(["--sequences", str(tmp_path / "s.json"), "--output_dir", str(tmp_path / "json")])
    assert release(tmp_path / "json") == lines
    (tmp_path / "s.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="is not a JSON object of lists"):
        amazon(["--sequences", str(tmp_path / "s.json"), "--output_dir", str(tmp_path / "json")])


@pytest.mark.parametrize("item", [0.5, 2.0**53, True, 2**63, "1.5", None, [1]])
def test_an_item_that_is_no_int64_is_counted_not_cut(tmp_path, item):
    (tmp_path / "inter.json").write_text(json.dumps({"1": [1, 2, 3, 4], "2": [1, 2, 3, item]}))
    with pytest.raises(InputError, match="1 of 2 rows are bad"):
        amazon(["--sequences", str(tmp_path / "inter.json"), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("attributes", [[1, 2], {"1": 5}, {"1": None}])
def test_attributes_of_another_shape_are_one_line(sequences, tmp_path, attributes):
    (tmp_path / "a.json").write_text(json.dumps(attributes))
    (tmp_path / "inter.json").write_text(json.dumps({"1": [1, 2, 3, 4]}))
    argv = ["--sequences", str(tmp_path / "inter.json"), "--attributes", str(tmp_path / "a.json")]
    with pytest.raises(InputError, match="is not a JSON object of lists"):
        amazon([*argv, "--output_dir", str(tmp_path / "out")])


def test_beauty_has_the_numbers_that_the_papers_state(tmp_path, capsys, shared_data):
    real = shared_data("amazon2014")
    amazon(
        [
            "--sequences",
            str(real / "Beauty.txt"),
            "--attributes",
            str(real / "Beauty_item2attributes.json"),
            "--output_dir",
            str(tmp_path),
        ]
    )
    assert "22,363 users, 12,101 items, 198,502 interactions" in capsys.readouterr().out


def test_pairs_count_by_distance():
    pairs = Pairs(np.array([0, 1, 2, 2, 0]), [3, 2], n=3, window=2)  # 0 1 2, and 2 0
    counts = [[0, 1, 1.5], [1, 0, 1], [1.5, 1, 0]]
    assert pairs.rows(0, 3).toarray().tolist() == counts and pairs.rows(1, 2).toarray().tolist() == counts[1:2]
    assert pairs.margin().tolist() == [2.5, 2, 2.5]
    wide = Pairs(np.array([0, 1, 2, 2, 0]), [3, 2], n=3, window=2**31 - 1)  # no wider than the longest history
    assert wide.rows(0, 3).toarray().tolist() == counts and wide.margin().tolist() == [2.5, 2, 2.5]


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_mutual_information_by_blocks_is_that_of_the_whole_matrix(monkeypatch, block):
    monkeypatch.setattr("data.cooccurrence.BLOCK", block)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 12, 50)
    items, owner = rng.integers(0, 30, lengths.sum()), np.repeat(np.arange(50), lengths)
    counts = np.zeros((30, 30))
    for a, b in itertools.permutations(range(len(items)), 2):
        if owner[a] == owner[b] and abs(a - b) <= 4:
            counts[items[a], items[b]] += 1 / abs(a - b)
    margin = counts.sum(0)
    context = margin**SMOOTHING / (margin**SMOOTHING).sum()
    with np.errstate(divide="ignore"):
        expected = np.maximum(np.log(counts / counts.sum() / np.outer(margin / counts.sum(), context)), 0)
    pairs = Pairs(items, lengths, 30, window=4)
    np.testing.assert_allclose(ppmi(pairs).toarray(), expected, atol=1e-12)
    few = ppmi(pairs, most=3).toarray()
    assert ((few > 0).sum(1) == 3).all() and np.allclose(np.sort(few)[:, -3:], np.sort(expected)[:, -3:])


def logs(folder, split=0):
    """Two groups of items that are never watched together, and an item that only a test row knows."""
    rng = np.random.default_rng(0)
    rows = []
    for uid in range(200):
        group = np.arange(1, 11) + 10 * (uid % 2)
        items = rng.choice(group, 8, replace=False).tolist()
        rows.append({"uid": uid, "split": split, "hist_video_pid": items[:6], "target_video_pid": items[6:]})
    rows.append({"uid": 999, "split": 1, "hist_video_pid": [1, 11], "target_video_pid": [77]})
    write_table(folder / "logs.parquet", pa.Table.from_pylist(rows))
    return ["--input", str(folder / "logs.parquet"), "--output_path", str(folder / "e.parquet"), "--dim", "4"]


def test_items_watched_together_are_near_and_test_rows_are_not_read(tmp_path):
    argv = logs(tmp_path)
    cooccurrence(argv)
    table = pq.read_table(tmp_path / "e.parquet")
    assert table["pid"].to_pylist() == list(range(1, 21)), "77 stands in a test row only"
    vectors = np.stack(table["embedding"].to_numpy())
    near = vectors @ vectors.T
    inside = np.add.outer(np.arange(20) // 10, -(np.arange(20) // 10)) == 0
    assert near[inside].mean() > near[~inside].mean() + 0.3
    before = (tmp_path / "e.parquet").read_bytes()
    cooccurrence(argv)
    assert (tmp_path / "e.parquet").read_bytes() == before


def test_logs_without_training_rows_are_one_line(tmp_path):
    with pytest.raises(InputError, match="has 0 items in its training rows"):
        cooccurrence(logs(tmp_path, split=1))


def test_embeddings_of_text_and_of_co_occurrence_stand_side_by_side(tmp_path):
    cooccurrence(logs(tmp_path))
    captions = {"pid": [1, 2, 77], "caption": ["red bath soap", "blue bath soap", "green bath towel"]}
    write_table(tmp_path / "c.parquet", pa.table(captions))
    argv = [
        "--input",
        str(tmp_path / "c.parquet"),
        "--output_path",
        str(tmp_path / "both.parquet"),
        "--dim",
        "2",
    ]
    embed([*argv, "--concat", f"{tmp_path}/e.parquet:0.5"])
    vectors = np.stack(pq.read_table(tmp_path / "both.parquet")["embedding"].to_numpy())
    assert vectors.shape == (3, 6) and np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert not vectors[2, 2:].any(), "an item without co-occurrence has zeros there"
    assert np.allclose(np.linalg.norm(vectors[0, 2:]) / np.linalg.norm(vectors[0, :2]), 0.5)
    with pytest.raises(InputError, match="has the weight much"):
        embed([*argv, "--concat", f"{tmp_path}/e.parquet:much"])
