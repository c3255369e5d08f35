"""The MovieLens adapter: leave-one-out without a leak, the documented masks, both file formats, bad rows counted."""

import json
import re

import pyarrow.parquet as pq
import pytest

from data.adapters.movielens import main, title_and_year
from onerec.errors import InputError

# user, item, rating, timestamp; items 12 and 13 of user 1 are out of order, 20 to 22 of user 3 share a time.
RATINGS = [
    *[(1, 10, 5, 1), (1, 11, 2, 2), (1, 12, 4, 4), (1, 13, 3, 3), (1, 14, 1, 5)],
    (2, 10, 3, 1),
    *[(3, item, 4, 7) for item in (22, 20, 21, 10)],
    *[(4, item, 5, item) for item in range(10, 25)],
]
HEADERS = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
    "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
    "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
}
ITEMS = range(10, 26)


def recbole(folder, ratings=RATINGS, users=True):
    """Write the three files in RecBole's form."""
    folder.mkdir(exist_ok=True)
    rows = {
        "inter": ["\t".join(map(str, rating)) for rating in ratings],
        "item": [f"{i}\tFilm {i}\t19{80 + i - 10}\tComedy Drama" for i in ITEMS],
        "user": ["1\t24\tM\ttechnician\t85711"],
    }
    for name, lines in rows.items():
        if name != "user" or users:
            (folder / f"ml-100k.{name}").write_text("\n".join([HEADERS[name], *lines]) + "\n")
    return folder


def original(folder):
    """Write the same in the original form."""
    folder.mkdir()
    flags = ["0"] * 19
    flags[5] = flags[8] = "1"
    items = [[str(i), f"Film {i} (19{80 + i - 10})", "", "", "", *flags] for i in ITEMS]
    (folder / "u.data").write_text("\n".join("\t".join(map(str, rating)) for rating in RATINGS))
    (folder / "u.item").write_bytes("\n".join("|".join(item) for item in items).encode("latin-1"))
    (folder / "u.user").write_text("1|24|M|technician|85711\n")
    return folder


def convert(folder, *flags):
    main(["--input", str(folder), "--output_dir", str(folder / "out"), *flags])
    rows = pq.read_table(folder / "out" / "onerec_data" / "onerec_bench_release.parquet").to_pylist()
    return {(row["uid"], row["split"]): row for row in rows}


def manifest(folder):
    return json.loads((folder / "out" / "manifest.json").read_text())


@pytest.fixture
def films(tmp_path):
    return recbole(tmp_path / "films")


def test_each_user_gives_a_training_row_and_a_test_row_without_a_leak(films):
    rows = convert(films)
    assert sorted(rows) == [(1, 0), (1, 1), (3, 0), (3, 1), (4, 0), (4, 1)]
    assert rows[1, 1]["hist_video_pid"] == [10, 11, 13, 12] and rows[1, 1]["target_video_pid"] == [14]
    assert rows[1, 0]["hist_video_pid"] == [10] and rows[1, 0]["target_video_pid"] == [11, 13, 12]
    assert rows[4, 0]["hist_video_pid"] == list(range(10, 14))
    assert rows[4, 0]["target_video_pid"] == list(range(14, 24))
    for uid in (1, 3, 4):
        (held_out,) = rows[uid, 1]["target_video_pid"]
        train = {key: value for key, value in rows[uid, 0].items() if key != "uid"}
        lists = [
            pid
            for name, value in train.items()
            if name.endswith(("_pid", "_list")) and isinstance(value, list)
            for pid in value
        ]
        texts = " ".join(value for value in train.values() if isinstance(value, str))
        assert held_out not in lists and train["target_pid"] != held_out
        assert str(held_out) not in texts and f"Film {held_out}" not in texts


def test_ties_in_time_stay_as_the_file_has_them(films):
    row = convert(films)[3, 1]
    assert row["hist_video_pid"] == [22, 20, 21] and row["target_video_pid"] == [10]


def test_masks_follow_the_documented_rule(films):
    row = convert(films)[1, 1]  # ratings of the history: 5, 2, 3, 4; of the target: 1
    assert row["hist_video_longview"] == [1, 0, 1, 1] and row["hist_video_like"] == [1, 0, 0, 1]
    assert row["hist_video_follow"] == [1, 0, 0, 0] and row["hist_video_forward"] == [0, 0, 0, 0]
    assert row["hist_video_not_interested"] == [0, 1, 0, 0] and row["target_video_not_interested"] == [1]
    assert row["hist_longview_video_list"] == [10, 13, 12]
    assert row["hist_ad_pid"] == row["target_goods_pid"] == []


def test_texts_come_from_the_files(films):
    rows = convert(films)
    assert rows[1, 1]["inter_user_profile"] == (
        "24岁的用户，职业是technician，常看Comedy、Drama类电影。最近喜欢<pid:10>、<pid:12>。"
    )
    assert "岁" not in rows[3, 1]["inter_user_profile"]
    assert json.loads(rows[1, 0]["inter_keyword_to_items"]) == {"Comedy": [13, 12], "Drama": [13, 12]}
    captions = pq.read_table(films / "out" / "onerec_data" / "pid2caption.parquet").to_pylist()
    assert captions[2] == {
        "pid": 12,
        "dense_caption": "1982年上映的电影《Film 12》，类型：Comedy、Drama。",
        "tags": ["Comedy", "Drama"],
    }
    assert len(captions) == len(ITEMS)


def test_the_original_files_give_the_same_tables(films, tmp_path):
    old = original(tmp_path / "original")
    assert convert(films) == convert(old)
    name = "out/onerec_data/pid2caption.parquet"
    assert (films / name).read_bytes() == (old / name).read_bytes()


@pytest.mark.parametrize(
    "title, year, expected",
    [
        ("Toy Story", "1995", ("Toy Story", "1995")),
        ("Toy Story (1995)", "", ("Toy Story", "1995")),
        ("Land Before Time III (1995)", "V", ("Land Before Time III", "1995")),
        ("Shanghai Triad (Yao a yao) (1995)", "", ("Shanghai Triad (Yao a yao)", "1995")),
        ("unknown", "", ("unknown", "")),
        ("2001", "", ("2001", "")),
    ],
)
def test_a_year_is_found_where_it_stands(title, year, expected):
    assert title_and_year(title, year) == expected


def test_bad_ratings_are_dropped_counted_and_past_the_limit_refused(tmp_path, capsys):
    bad = [
        (1, 11, "good", 9),
        (1, "", 3, 9),
        (1, 12, 9, 9),
        (1, 12, 3, "inf"),
        (1, 12, "nan", 9),
        (1, 99, 3, 9),
    ]
    folder = recbole(tmp_path / "bad", [*RATINGS, *bad])
    with pytest.raises(InputError, match=r"ml-100k.inter: 6 of 31 rows are bad .*--max_bad_ratio"):
        convert(folder)
    assert not (folder / "out").exists()
    rows = convert(folder, "--max_bad_ratio", "0.2")
    assert rows == convert(recbole(tmp_path / "good"))
    assert manifest(folder)["dropped"] == {
        "rating row does not parse": 5,
        "rating of a film without a title": 1,
        "user with fewer than 4 ratings": 1,
    }
    assert "5 (rating row does not parse)" in capsys.readouterr().out


def test_a_film_rated_twice_counts_once_so_that_it_cannot_leak(tmp_path):
    folder = recbole(tmp_path / "twice", [*RATINGS, (1, 10, 2, 9)])
    rows = convert(folder, "--max_bad_ratio", "0.1")
    assert rows[1, 1]["target_video_pid"] == [10] and 10 not in rows[1, 1]["hist_video_pid"]
    assert 10 not in rows[1, 0]["hist_video_pid"] and rows[1, 1]["target_video_not_interested"] == [1]


def test_a_damaged_film_file_is_refused(films):
    path = films / "ml-100k.item"
    path.write_text(path.read_text() + "x\tFilm\t1990\tDrama\n")
    with pytest.raises(InputError, match=r"ml-100k.item: 1 of 17 rows are bad"):
        convert(films)


def test_users_are_optional(tmp_path):
    rows = convert(recbole(tmp_path / "plain", users=False))
    assert rows[1, 1]["inter_user_profile"].startswith("用户常看Comedy、Drama类电影")


def test_missing_files_and_columns_are_refused(films, tmp_path):
    with pytest.raises(InputError, match=r"holds neither ml-100k.item nor u.item"):
        convert(tmp_path)
    (films / "ml-100k.inter").write_text("user_id:token\titem_id:token\trating:float\n1\t10\t3\n")
    with pytest.raises(InputError, match=r"ml-100k.inter: has no column timestamp"):
        convert(films)
    (films / "ml-100k.inter").write_text(HEADERS["inter"] + "\n")
    with pytest.raises(InputError, match=r"ml-100k.inter: holds no rating"):
        convert(films)
    (films / "ml-100k.inter").unlink()
    with pytest.raises(InputError, match=r"holds neither ml-100k.inter nor u.data"):
        convert(films)
    assert not (films / "out").exists()


def test_users_with_too_few_ratings_leave_nothing(tmp_path):
    with pytest.raises(InputError, match="leaves no user; users with at least 4 ratings"):
        convert(recbole(tmp_path / "few", RATINGS[5:6]))


def test_a_byte_order_mark_is_no_part_of_a_name(films):
    for path in films.glob("ml-100k.*"):
        path.write_text("\ufeff" + path.read_text())
    assert sorted(convert(films)) == [(1, 0), (1, 1), (3, 0), (3, 1), (4, 0), (4, 1)]


def test_ids_past_int64_are_counted(tmp_path):
    huge = recbole(tmp_path / "huge", [(10**30 + user, *rest) for user, *rest in RATINGS])
    with pytest.raises(InputError, match="holds no rating"):
        convert(huge)
    item = recbole(tmp_path / "item", [*RATINGS, (1, 2**64, 5, 9)])
    with pytest.raises(InputError, match="1 of 26 rows are bad"):
        convert(item)
    (films := recbole(tmp_path / "films")).joinpath("ml-100k.item").open("a").write(f"{2**70}\tFilm\t1990\tWar\n")
    convert(films, "--max_bad_ratio", "0.1")
    assert manifest(films)["dropped"]["film row does not parse"] == 1


def test_texts_are_in_the_language_of_the_prompts(tmp_path):
    rows = convert(recbole(tmp_path / "in"), "--prompts", "en")
    assert rows[1, 1]["reco_target_caption"].startswith("The film Film ")
    assert rows[1, 1]["inter_user_profile"].startswith(
        "Aged 24, occupation technician. Often watches films of the genres "
    )
    captions = pq.read_table(tmp_path / "in/out/onerec_data/pid2caption.parquet")["dense_caption"].to_pylist()
    assert captions[0] == "The film Film 10 (1980). Genres: Comedy, Drama."
    texts = [str(value) for row in rows.values() for value in row.values()]
    assert not [text for text in [*texts, *captions] if re.search("[\u3000-\u9fff\uff00-\uffef]", text)]
