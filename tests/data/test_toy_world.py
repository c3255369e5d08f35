"""The toy world has the published layout, the same bytes by seed, and structure that a model can learn."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.make_toy_world import main
from data.toy.items import SUBTOPICS, latent_space, make_items
from data.toy.reference import measure, recall_at
from data.toy.users import World, simulate_user
from onerec.errors import InputError
from tests.arguments import as_flags

LABELS = ("longview", "like", "follow", "forward", "not_interested")
SMALL = as_flags(n_users=120, n_videos=240, n_ads=24, n_goods=48, n_texts=60, n_facts=12)
_COLUMNS = """
uid split hist_video_pid target_video_pid hist_longview_video_list hist_ad_pid target_ad_pid hist_goods_pid
target_goods_pid inter_user_profile inter_keyword_to_items reco_gsu_caption reco_target_caption reco_cot target_pid
"""
COLUMNS = set(_COLUMNS.split()) | {f"{side}_video_{label}" for side in ("hist", "target") for label in LABELS}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    main(["--output_dir", str(folder), *SMALL])
    return folder


@pytest.fixture(scope="module")
def release(world):
    return pq.read_table(world / "onerec_data" / "onerec_bench_release.parquet").to_pylist()


def pids(world, name):
    return pq.read_table(world / "onerec_data" / f"{name}.parquet")["pid"].to_pylist()


def test_the_release_has_the_published_columns_and_aligned_masks(release):
    assert len(release) == 120 and sum(row["split"] for row in release) == 24
    assert set(release[0]) == COLUMNS and len({row["uid"] for row in release}) == 120
    for row in release:
        for side in ("hist", "target"):
            for label in LABELS:
                mask = row[f"{side}_video_{label}"]
                assert len(mask) == len(row[f"{side}_video_pid"]) and set(mask) <= {0, 1}
        watched = zip(row["hist_video_pid"], row["hist_video_longview"], strict=True)
        assert row["hist_longview_video_list"] == [pid for pid, label in watched if label]
        assert row["target_pid"] in row["target_video_pid"]


def test_every_pid_of_a_row_is_in_the_catalogue_of_its_domain(world, release):
    shared, products = set(pids(world, "pid2caption")), set(pids(world, "product_pid2caption"))
    videos, ads = set(range(1, 241)), set(range(241, 265))
    assert shared == videos | ads and products == set(range(1, 49))
    for row in release:
        assert set(row["hist_video_pid"] + row["target_video_pid"]) <= videos
        assert set(row["hist_ad_pid"] + row["target_ad_pid"]) <= ads
        assert set(row["hist_goods_pid"] + row["target_goods_pid"]) <= products
        keywords = json.loads(row["inter_keyword_to_items"])
        assert all(set(found) <= videos for found in keywords.values())
    assert any(not row["hist_ad_pid"] for row in release) and any(not row["hist_goods_pid"] for row in release)


def test_every_item_has_a_caption_and_an_embedding(world):
    for captions, embeddings in (
        ("pid2caption", "item_embedding"),
        ("product_pid2caption", "product_embedding"),
    ):
        assert pids(world, captions) == pids(world, embeddings)
        table = pq.read_table(world / "onerec_data" / f"{embeddings}.parquet")
        vectors = np.array(table["embedding"].to_pylist())
        assert vectors.shape == (table.num_rows, 64) and np.isfinite(vectors).all()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world, tmp_path):
    main(["--output_dir", str(tmp_path / "same"), *SMALL])
    main(["--output_dir", str(tmp_path / "other"), "--seed", "1", *SMALL])
    paths = sorted(path.relative_to(world) for path in world.rglob("*.parquet"))
    assert len(paths) == 9
    for path in paths:
        assert (tmp_path / "same" / path).read_bytes() == (world / path).read_bytes(), path
        assert (tmp_path / "other" / path).read_bytes() != (world / path).read_bytes(), path


def test_nearest_items_share_the_subtopic_and_then_the_style():
    rng = np.random.default_rng(0)
    items = make_items(rng, latent_space(rng), "video", 1200, 1)
    vectors = items.embedding.astype(float)
    away = (vectors**2).sum(1)[:, None] + (vectors**2).sum(1)[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(away, np.inf)
    nearest = away.argmin(1)
    assert (items.subtopic[nearest] == items.subtopic).mean() > 0.99
    assert (items.style[nearest] == items.style).mean() > 0.9
    assert np.bincount(items.subtopic, minlength=len(SUBTOPICS)).min() == 1200 // len(SUBTOPICS)


def test_a_caption_names_what_the_item_is():
    rng = np.random.default_rng(0)
    items = make_items(rng, latent_space(rng), "ad", 48, 100)
    for caption, subtopic in zip(items.caption, items.subtopic, strict=True):
        assert all(word in caption for word in SUBTOPICS[subtopic]) and "广告" in caption
    assert items.pid[0] == 100 and len(set(items.pid)) == 48


def test_the_last_item_says_less_than_the_history_and_longview_follows_the_interest():
    rng = np.random.default_rng(0)
    items = make_items(rng, latent_space(rng), "video", 1200, 1)
    worlds = {"video": World(items), "ad": World(items), "goods": World(items)}
    rows, watches = zip(
        *(simulate_user(np.random.default_rng([7, u]), u, u % 4 == 0, worlds) for u in range(500)),
        strict=True,
    )
    value = {name: pair[0] for name, pair in measure(items, list(rows), list(watches)).items()}
    assert 0.25 < value["oracle"] < 0.45
    assert value["oracle"] > 3 * value["last-item co-occurrence"] > 3 * value["popularity"] > 0
    assert value["oracle"] > value["subtopics and style of the last 20 items"] > 0.2
    fits = np.concatenate([watch.fit for watch in watches])
    longview = np.concatenate([[*r["hist_video_longview"], *r["target_video_longview"]] for r in rows])
    assert longview[fits == 0].mean() > 0.9 > 0.3 > longview[fits == 1].mean() > longview[fits == 2].mean()


def test_recall_counts_the_targets_among_the_best():
    scores = np.array([0.1, 0.9, 0.5, 0.7])
    assert recall_at(2, scores, np.array([1, 2])) == 0.5
    assert recall_at(3, scores, np.array([1, 2])) == 1.0
    assert recall_at(1, scores, np.array([0])) == 0.0


def test_the_manifest_and_the_table_say_what_was_made(tmp_path, capsys):
    main(["--output_dir", str(tmp_path), *SMALL])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seed"] == 0 and manifest["args"]["n_users"] == 120
    assert all(rows == pq.read_metadata(path).num_rows for path, rows in manifest["outputs"].items())
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("popularity", "last-item co-occurrence", "oracle", "120 users"))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--n_users", "3"], "--n_users: is 3; give a whole number from 10"),
        (["--n_goods", "5"], "--n_goods: is 5; give a whole number from 24"),
        (["--n_facts", "1000"], "--n_facts: is 1000; give a whole number from 4 to 240"),
        (["--seed", "-1"], "--seed: is -1; give a whole number from 0"),
    ],
)
def test_a_world_that_cannot_be_is_refused_and_nothing_written(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        main(["--output_dir", str(tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="is a file"):
        main(["--output_dir", str(tmp_path / "taken"), *SMALL])
