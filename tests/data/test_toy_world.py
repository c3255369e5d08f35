"""The toy world has the published layout, the same bytes by seed, and structure that a model can learn."""

import json

import pyarrow.parquet as pq
import pytest

from data.adapters.movielens import main as movielens
from data.make_toy_world import main
from data.toy.general_text import LARGEST_ADDEND
from onerec.errors import InputError
from onerec.records import check_record, parse_messages


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    main(
        [
            "--output_dir",
            str(folder),
            "--n_users",
            "120",
            "--n_videos",
            "240",
            "--n_ads",
            "24",
            "--n_goods",
            "48",
            "--n_texts",
            "60",
            "--n_facts",
            "12",
        ]
    )
    return folder


def release(folder):
    return pq.read_table(folder / "onerec_data" / "onerec_bench_release.parquet").to_pylist()


def test_the_release_has_the_published_columns_and_aligned_masks(world):
    rows = release(world)
    assert len(rows) == 120 and sum(row["split"] for row in rows) == 24
    for row in rows:
        for side in ("hist", "target"):
            for label in ("longview", "like", "follow", "forward", "not_interested"):
                assert len(row[f"{side}_video_{label}"]) == len(row[f"{side}_video_pid"])
        assert all(isinstance(pids, list) for pids in json.loads(row["inter_keyword_to_items"]).values())
    assert {"hist_longview_video_list", "hist_ad_pid", "target_goods_pid", "reco_cot", "target_pid"} <= set(
        rows[0]
    )


def test_every_item_has_a_caption_and_an_embedding(world):
    for captions, embeddings, n in (
        ("pid2caption", "item_embedding", 264),
        ("product_pid2caption", "product_embedding", 48),
    ):
        tables = [pq.read_table(world / "onerec_data" / f"{name}.parquet") for name in (captions, embeddings)]
        assert all(table["pid"].to_pylist() == list(range(1, n + 1)) for table in tables)


def test_the_same_seed_gives_the_same_bytes(world, tmp_path):
    argv = [
        "--n_users",
        "120",
        "--n_videos",
        "240",
        "--n_ads",
        "24",
        "--n_goods",
        "48",
        "--n_texts",
        "60",
        "--n_facts",
        "12",
    ]
    main(["--output_dir", str(tmp_path), *argv])
    for path in sorted(world.rglob("*.parquet")):
        assert (tmp_path / path.relative_to(world)).read_bytes() == path.read_bytes(), path.name


def test_held_out_questions_are_not_taught_but_their_facts_are(world):
    def questions(path):
        table = pq.read_table(world / "general_text" / path).to_pylist()
        assert all(check_record(row) is None for row in table)
        return {parse_messages(row["messages"])[0]["content"]: json.loads(row["metadata"]) for row in table}

    taught, held_out = questions("sft/toy_chat.parquet"), questions("heldout/qa.parquet")
    assert held_out and not taught.keys() & held_out.keys()
    answers = {meta["answer"] for meta in taught.values()}
    assert all(meta["answer"] in answers for meta in held_out.values() if meta["kind"] != "sum")
    assert any(
        "<think>" in row["messages"]
        for row in pq.read_table(world / "general_text/sft/toy_chat.parquet").to_pylist()
    )
    assert max(int(m["answer"]) for m in taught.values() if m["kind"] == "sum") <= 2 * LARGEST_ADDEND


def test_simple_predictors_leave_head_room(tmp_path, capsys):
    main(["--output_dir", str(tmp_path), "--n_users", "600"])
    table = dict(
        line.strip().rsplit(None, 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")
    )
    value = {name.strip(): float(x) for name, x in table.items()}
    assert value["oracle"] > 2.5 * value["last-item co-occurrence"] > 2.5 * value["popularity"]
    assert value["longview of the targets, oracle AUC"] > 0.7


def test_a_world_too_small_is_refused(tmp_path):
    with pytest.raises(InputError, match="--n_users: 3 is too small"):
        main(["--output_dir", str(tmp_path), "--n_users", "3"])


RATINGS = [(1, 10, 5, 1), (1, 11, 2, 2), (1, 12, 4, 4), (1, 13, 3, 3), (1, 14, 1, 5), (2, 10, 3, 1)]


@pytest.fixture
def films(tmp_path):
    lines = [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        *("\t".join(map(str, r)) for r in RATINGS),
    ]
    (tmp_path / "ml-100k.inter").write_text("\n".join(lines))
    items = [f"{i}\tFilm {i}\t199{i - 10}\tDrama Comedy" for i in range(10, 15)]
    (tmp_path / "ml-100k.item").write_text(
        "\n".join(["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq", *items])
    )
    return tmp_path


def test_movielens_is_leave_one_out_without_a_leak(films):
    movielens(["--input", str(films), "--output_dir", str(films / "out"), "--max_bad_ratio", "1"])
    train, test = release(films / "out")
    assert (test["split"], test["hist_video_pid"], test["target_video_pid"]) == (1, [10, 11, 13, 12], [14])
    assert (train["split"], train["hist_video_pid"], train["target_video_pid"]) == (0, [10], [11, 13, 12])
    assert "14" not in json.dumps({k: v for k, v in train.items() if isinstance(v, list)})
    assert test["hist_video_longview"] == [1, 0, 1, 1] and test["hist_video_like"] == [1, 0, 0, 1]


def test_movielens_original_files_give_the_same_rows(films, tmp_path):
    original = tmp_path / "original"
    original.mkdir()
    (original / "u.data").write_text("\n".join("\t".join(map(str, r)) for r in RATINGS))
    flags = ["0"] * 19
    flags[5] = flags[8] = "1"
    (original / "u.item").write_text(
        "\n".join("|".join([str(i), f"Film {i} (199{i - 10})", "", "", "", *flags]) for i in range(10, 15))
    )
    for folder in (films, original):
        movielens(["--input", str(folder), "--output_dir", str(folder / "out"), "--max_bad_ratio", "1"])
    first, second = release(films / "out"), release(original / "out")
    assert [r["hist_video_pid"] for r in first] == [r["hist_video_pid"] for r in second]


def test_movielens_bad_input(films):
    with pytest.raises(InputError, match=r"holds neither ml-100k.inter nor u.data"):
        movielens(["--input", str(films / "out"), "--output_dir", str(films / "x")])
    (films / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t2\t3")
    with pytest.raises(InputError, match="has no column timestamp"):
        movielens(["--input", str(films), "--output_dir", str(films / "x")])
