"""A catalogue of one's own: tables in every form, events and histories, ids to the letter, splits, and bad input."""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.adapters.own import main
from onerec.errors import InputError
from onerec.ids import Names

ITEMS = [{"item_id": f"B00{i}", "title": f"Pen {i}", "brand": "Acme", "category": "office, pens"} for i in range(8)]
# user, item, time: u1 takes B001 twice; B003 and B002 of u2 share a time and stand in this order.
EVENTS = [
    *[("u1", "B001", 40), ("u1", "B000", 10), ("u1", "B001", 20), ("u1", "B002", 30), ("u1", "B003", 50)],
    *[("u2", "B000", 1), ("u2", "B003", 2), ("u2", "B002", 2), ("u2", "B004", 4)],
    *[("u3", "B005", 1), ("u3", "B006", 2)],
]
COLUMNS = ("user_id", "item_id", "timestamp")
BASE = 1_700_000_000


def events(rows=EVENTS, base=BASE, **more):
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["timestamp"] += base
    return table.assign(**more)


def convert(folder: Path, items=None, logs=None, *flags, files=None):
    """Write both tables as JSON lines and Parquet, convert them, and give the rows with own ids by (user, split)."""
    items_path = folder / "items.jsonl"
    if items is None or isinstance(items, list):
        items_path.write_text("".join(json.dumps(row) + "\n" for row in (ITEMS if items is None else items)))
    else:
        items_path = items
    if files is None:
        files = [str(folder / "logs.parquet")]
        (events() if logs is None else logs).to_parquet(files[0])
    main(["--items", str(items_path), "--logs", *files, "--output_dir", str(folder / "out"), *flags])
    return rows_of(folder / "out")


def rows_of(out: Path, window: int = 0):
    data = out / "onerec_data"
    items, users = Names(data / "item_ids.parquet"), Names(data / "user_ids.parquet")
    found = {}
    for row in pq.read_table(data / "onerec_bench_release.parquet").to_pylist():
        both = tuple([items.show(pid) for pid in row[name]] for name in ("hist_video_pid", "target_video_pid"))
        if row["window"] == window:
            found[users.show(row["uid"]), row["split"]] = both
    return found


def dropped(folder: Path):
    return json.loads((folder / "out" / "manifest.json").read_text())["dropped"]


def test_a_users_last_event_is_the_tests_and_the_one_before_it_validations(tmp_path):
    rows = convert(tmp_path)
    assert rows == {
        ("u1", 0): (["B000", "B001"], ["B002"]),
        ("u1", 1): (["B000", "B001", "B002", "B001"], ["B003"]),
        ("u1", 2): (["B000", "B001", "B002"], ["B001"]),
        ("u2", 0): (["B000"], ["B003"]),
        ("u2", 1): (["B000", "B003", "B002"], ["B004"]),
        ("u2", 2): (["B000", "B003"], ["B002"]),
        ("u3", 0): (["B005"], ["B006"]),
    }, "u1 takes B001 again; ties stay as in the file; u3's two events are for training"
    assert dropped(tmp_path) == {"user with fewer than 4 events: for training alone": 1}
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet").to_pylist()
    assert captions[0]["dense_caption"] == "Pen 0. brand: Acme. category: office, pens"
    assert captions[0]["title"] == "Pen 0" and captions[0]["tags"] == ["office", "pens"]


def write_as(kind: str, table: pd.DataFrame, folder: Path, name: str) -> Path:
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        table.to_parquet(path)
    elif kind == "csv":
        table.to_csv(path, index=False)
    elif kind == "tsv":
        table.rename(columns=lambda c: f"{c}:token").to_csv(path, index=False, sep="\t")
    elif kind == "csv.gz":
        with gzip.open(path, "wt") as file:
            table.to_csv(file, index=False, sep=";")
    elif kind == "json":  # one document
        table.to_json(path, orient="records")
    elif kind == "folder":
        path.mkdir()
        for part in range(2):
            table.iloc[part::2].sort_index().to_parquet(path / f"part-{part}.parquet")
        (path / "_SUCCESS").write_text("")
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def digests(out: Path):
    return [(out / "onerec_data" / f"{name}.parquet").read_bytes() for name in ("onerec_bench_release", "pid2caption")]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "json"])
def test_every_form_of_file_gives_the_same(kind, tmp_path):
    convert(tmp_path)
    items = write_as(kind, pd.DataFrame(ITEMS), tmp_path, "other_items")
    logs = write_as(kind, events(), tmp_path, "other_logs")
    main(["--items", str(items), "--logs", str(logs), "--output_dir", str(tmp_path / "other")])
    assert digests(tmp_path / "other") == digests(tmp_path / "out")


def test_a_folder_is_its_files_and_those_of_its_folders(tmp_path):
    rows = convert(tmp_path)
    folder = write_as("folder", events(), tmp_path, "logs")
    assert convert(tmp_path, files=[str(folder)]).keys() == rows.keys()
    (folder / "day=2").mkdir()
    (folder / "part-1.parquet").rename(folder / "day=2/part.parquet")
    (folder / "_temporary").mkdir()
    (folder / "_temporary/part.parquet").write_text("half")
    assert convert(tmp_path, files=[str(folder)]).keys() == rows.keys()


def test_text_ids_give_the_same_bytes_as_numbers(tmp_path):
    def table(name):
        logs = events()
        logs["user_id"], logs["item_id"] = logs.user_id.map(name), logs.item_id.map(name)
        items = pd.DataFrame(ITEMS)
        items["item_id"] = items.item_id.map(name)
        folder = tmp_path / str(name("x1"))
        folder.mkdir()
        items.to_parquet(folder / "items.parquet")
        convert(folder, folder / "items.parquet", logs)
        return digests(folder / "out")

    text = table(lambda old: f"Ää {old}")
    assert text == table(lambda old: int(old[1:])) == table(lambda old: float(old[1:])) == table(lambda old: f"00{old}")


def test_ids_are_kept_to_the_letter_and_those_that_are_alike_are_named(tmp_path, capsys):
    items = [{"sku": sku, "name": sku} for sku in ("007", "7", "a1", "A1", "b ", "b", "c")]
    logs = pd.DataFrame([("x", sku["sku"], n) for n, sku in enumerate(items)] + [("X", "c", 1), ("X", "b", 2)])
    logs.columns = ["customer_id", "sku", "ts"]
    logs.to_csv(tmp_path / "logs.csv", index=False)
    rows = convert(tmp_path, items, files=[str(tmp_path / "logs.csv")])
    assert rows["x", 1] == (["007", "7", "a1", "A1", "b ", "b"], ["c"])
    said = capsys.readouterr().err
    assert "4 item ids differ from another only by case or by spaces ('a1' and 'A1')" in said
    assert "2 user ids" in said
    assert len(json.loads((tmp_path / "out/manifest.json").read_text())["warnings"]) == 2


# --- splits


def test_a_split_by_time(tmp_path):
    rows = convert(tmp_path, None, events(), "--split_time", "2023-11-14T22:14:00", "--validation", "0")
    assert rows["u1", 1] == (["B000", "B001", "B002"], ["B001", "B003"])
    assert rows["u1", 0] == (["B000", "B001"], ["B002"]) and ("u2", 1) not in rows


def test_a_split_time_that_splits_nothing_says_from_when_to_when_the_events_are(tmp_path):
    with pytest.raises(InputError, match=r"is 2024: no row .* between 2023-11-14 22:13:21 and 2023-11-14 22:14:10"):
        convert(tmp_path, None, events(), "--split_time", "2024")
    with pytest.raises(InputError, match="is 1600000000: every row"):
        convert(tmp_path, None, events(), "--split_time", "1600000000")
    with pytest.raises(InputError, match="2024-01-01 is no number, as the times of the logs are"):
        convert(tmp_path, None, events(base=0), "--split_time", "2024-01-01")
    assert convert(tmp_path, None, events(base=0), "--split_time", "40", "--validation", "0")["u1", 1][1] == [
        "B001",
        "B003",
    ]


@pytest.mark.parametrize("least", [2, 3])
def test_where_hardly_a_user_has_four_events_some_of_the_others_are_asked(least, tmp_path):
    rows = [(f"v{user}", f"B00{(user + n) % 8}", n) for user in range(40) for n in range(least)]
    found = convert(tmp_path, None, events([*EVENTS[:5], *rows]))
    asked = {split: [user for user, each in found if each == split] for split in (0, 1, 2)}
    assert asked[1] == ["u1", "v0", "v10", "v20", "v30"] and asked[2] == ["u1", "v5", "v15", "v25", "v35"]
    assert found["v10", 1] == ([f"B00{(10 + n) % 8}" for n in range(least - 1)], [f"B00{(9 + least) % 8}"])
    learnt = 33 if least == 2 else 41
    assert len(asked[0]) == learnt, "of two events of which one is asked for nothing is left to learn"
    assert dropped(tmp_path)["user with fewer than 4 events: for training alone"] == 32


@pytest.mark.parametrize("words", [("train", "valid", "test"), (0, 2, 1), ("Training", "dev", "TEST")])
def test_a_split_of_the_logs_own_in_numbers_or_words(words, tmp_path):
    parts = [2, 0, 0, 1, 2, *[0, 0, 1, 2], 0, 0]
    rows = convert(tmp_path, None, events(split=[words[part] for part in parts]))
    assert rows["u1", 1] == (["B000", "B001", "B002"], ["B001", "B003"])
    assert rows["u1", 2] == (["B000", "B001"], ["B002"])
    assert rows["u2", 0] == (["B000"], ["B003"]) and rows["u3", 0] == (["B005"], ["B006"])


def test_files_named_by_their_split(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    events([row for row in EVENTS if row[2] < 40]).to_csv(folder / "train.csv", index=False)
    events([row for row in EVENTS if row[2] >= 40]).to_csv(folder / "test.csv", index=False)
    rows = convert(tmp_path, files=[str(folder)])
    assert rows["u1", 1] == (["B000", "B001", "B002"], ["B001", "B003"])
    named = [f"train={folder / 'train.csv'}", f"test={folder / 'test.csv'}"]
    assert convert(tmp_path, files=named) == rows


@pytest.mark.parametrize("name", ["{}-00000-of-00001.csv", "{}/part-0.csv", "split={}/a=1/part-0.csv", "{}_events.csv"])
def test_files_and_folders_whose_names_begin_with_their_split(name, tmp_path):
    folder = tmp_path / "logs"
    for split, late in (("train", False), ("test", True)):
        path = folder / name.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        events([row for row in EVENTS if (row[2] >= 40) == late]).to_csv(path, index=False)
    rows = convert(tmp_path, files=[str(folder)])
    assert rows["u1", 1] == (["B000", "B001", "B002"], ["B001", "B003"])
    events(EVENTS[:2]).to_csv(folder / "more.csv", index=False)
    with pytest.raises(InputError, match=r"more\.csv: says no split by its name, and other files beside it do"):
        convert(tmp_path, files=[str(folder)])


def test_windows_make_every_event_a_target(tmp_path):
    convert(tmp_path, None, events(), "--windows", "-1", "--validation", "0")
    out = tmp_path / "out"
    assert rows_of(out)["u1", 0] == (["B000", "B001", "B002"], ["B001"])
    assert rows_of(out, 1)["u1", 0] == (["B000", "B001"], ["B002"])
    assert rows_of(out, 2)["u1", 0] == (["B000"], ["B001"])


# --- histories


def histories(**more):
    """Sliding histories of at most three items, as sets for sequential recommendation are published."""
    rows = [
        ("u1", ["B000", "B001", "B002"], "B003"),
        ("u1", ["B001", "B002", "B003"], "B004"),
        ("u2", ["B005"], "B006"),
        ("u2", ["B005", "B006"], "B005"),
    ]
    return pd.DataFrame(rows, columns=["uid", "history_pid_list", "target_pid"]).assign(**more)


def test_rows_of_histories_become_sequences(tmp_path):
    rows = convert(tmp_path, None, histories())
    assert rows == {
        ("u1", 0): (["B000", "B001"], ["B002"]),
        ("u1", 1): (["B000", "B001", "B002", "B003"], ["B004"]),
        ("u1", 2): (["B000", "B001", "B002"], ["B003"]),
        ("u2", 0): (["B005", "B006"], ["B005"]),
    }


def test_test_rows_of_histories_stay_as_they_are(tmp_path):
    logs = histories(split=["train", "test", "train", "test"])
    rows = convert(tmp_path, None, logs, "--validation", "0")
    assert rows["u1", 0] == (["B000", "B001", "B002"], ["B003"])
    assert rows["u1", 1] == (["B001", "B002", "B003"], ["B004"]), "not in training, and no longer than the file's"
    assert rows["u2", 1] == (["B005", "B006"], ["B005"])


def test_histories_as_text_in_csv(tmp_path):
    whole = convert(tmp_path, None, histories())
    for form in (repr, json.dumps, " ".join, ",".join):
        logs = histories()
        logs["history_pid_list"] = logs.history_pid_list.map(form)
        logs.to_csv(tmp_path / "logs.csv", index=False)
        assert convert(tmp_path, files=[str(tmp_path / "logs.csv")]) == whole, form


# --- actions, queries, columns


def test_actions_become_masks_and_queries_stay(tmp_path):
    logs = events(action=["like", "view", "buy", "dislike", "share", *["view"] * 4, "Like", "teleport"])
    logs["query"] = [f"q{i}" for i in range(len(logs))]
    again = logs.iloc[[2]].assign(action="like")  # the same event with another action
    convert(tmp_path, None, pd.concat([logs, again]))
    table = pq.read_table(tmp_path / "out/onerec_data/onerec_bench_release.parquet").to_pylist()
    first = next(row for row in table if row["uid"] == 1 and row["split"] == 1)
    assert first["hist_video_longview"] == [0, 1, 0, 0] and first["hist_video_like"] == [0, 1, 0, 1]
    assert first["hist_video_not_interested"] == [0, 0, 1, 0] and first["target_video_forward"] == [1]
    assert first["query"] == "q4"
    assert dropped(tmp_path)["event of the same user, item and time as another: one of them"] == 1
    assert dropped(tmp_path)["action of no known kind, teleport: the event stays"] == 1


def test_columns_of_other_names(tmp_path):
    items = [{"code": row["item_id"], "what": row["title"], "more": "red"} for row in ITEMS]
    logs = events().rename(columns={"user_id": "who", "item_id": "code", "timestamp": "moment"})
    flags = ["--columns", "item=code", "text=what+more", "user=who", "time=moment"]
    assert len(convert(tmp_path, items, logs, *flags)) == 7
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet").to_pylist()
    assert captions[0]["dense_caption"] == "Pen 0. more: red"
    other = logs.rename(columns={"code": "item_id"})
    assert len(convert(tmp_path, items, other, *flags)) == 7, "the logs have a usual name"
    with pytest.raises(InputError, match="time=when: no table has this column"):
        convert(tmp_path, items, logs, *flags[:-1], "time=when")
    with pytest.raises(InputError, match="is colour=red"):
        convert(tmp_path, items, logs, "--columns", "colour=red")


# --- times


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t * 1000,
        lambda t: t * 10**6,
        lambda t: t * 10**9,
        lambda t: t.astype(float) + 0.25,
        lambda t: pd.to_datetime(t, unit="s"),
        lambda t: pd.to_datetime(t, unit="s").dt.tz_localize("Asia/Shanghai"),
        lambda t: pd.to_datetime(t, unit="s").dt.strftime("%Y-%m-%d %H:%M:%S"),
        lambda t: t.astype(str),
    ],
    ids=["ms", "us", "ns", "float", "timestamp", "zone", "iso", "digits"],
)
def test_times_of_every_kind(change, tmp_path):
    logs = events()
    logs["timestamp"] = change(logs.timestamp)
    moment = "1700000040000" if "ms" in str(change) else "2023-11-14T22:14:00"
    assert convert(tmp_path, None, logs) == convert(tmp_path)
    if not isinstance(logs.timestamp.dtype, pd.DatetimeTZDtype):
        by_time = convert(tmp_path, None, logs, "--split_time", moment, "--validation", "0")
        assert by_time["u1", 1] == (["B000", "B001", "B002"], ["B001", "B003"])


def test_times_of_several_kinds_are_refused_by_name(tmp_path):
    logs = events()
    logs.loc[3, "timestamp"] *= 1000
    with pytest.raises(InputError, match=r"seconds \(1700000040 in .*\) and milliseconds \(1700000030000"):
        convert(tmp_path, None, logs)
    logs = events().astype({"timestamp": str})
    logs.loc[3, "timestamp"] = "2023-11-14"
    with pytest.raises(InputError, match=r"seconds .* and dates"):
        convert(tmp_path, None, logs)


# --- bad input


def test_unknown_items_are_counted_and_a_log_of_none_but_such_is_refused(tmp_path):
    rows = convert(tmp_path, ITEMS[:3])
    assert rows["u1", 1] == (["B000", "B001", "B002"], ["B001"])
    assert dropped(tmp_path)["event with an item that is not in the catalogue"] == 5
    with pytest.raises(InputError, match=r"names no item of the catalogue \(its ids: 'B001' or 'B000'\)"):
        convert(tmp_path, [row | {"item_id": row["item_id"].lower()} for row in ITEMS])


def test_events_without_time_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"has no column of the time of an event .*--columns time="):
        convert(tmp_path, None, events().drop(columns="timestamp"))
    logs = events().astype({"timestamp": "Int64"})
    logs.loc[[0, 1], "timestamp"] = pd.NA
    with pytest.raises(InputError, match=r"2 of 11 rows are bad .*event without a time"):
        convert(tmp_path, None, logs)
    convert(tmp_path, None, logs, "--max_bad_ratio", "0.5")
    assert dropped(tmp_path)["event without a time, or with one that cannot be read"] == 2


def test_items_without_text(tmp_path):
    with pytest.raises(InputError, match=r"has no column of an item's text .*--columns text="):
        convert(tmp_path, [{"item_id": "a", "price": 1}, {"item_id": "b", "price": 2}])
    with pytest.raises(InputError, match="has no text in any row"):
        convert(tmp_path, [{"item_id": "a", "title": ""}, {"item_id": "b", "title": None}])
    convert(tmp_path, [ITEMS[0] | {"title": None, "brand": None, "category": None}, *ITEMS[1:]])
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet").to_pylist()
    assert captions[0]["dense_caption"] == "item without a text"
    assert dropped(tmp_path)["item without a text: kept, its caption says so"] == 1


def test_a_table_of_ids_alone_is_a_catalogue(tmp_path, capsys):
    rows = convert(tmp_path, [{"item_id": row["item_id"]} for row in ITEMS])
    assert len(rows) == 7
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet").to_pylist()
    assert captions[0] == {"pid": 1, "title": "B000", "dense_caption": "item without a text"}
    assert f"warning: {tmp_path / 'items.jsonl'} holds ids alone" in capsys.readouterr().err


def test_titles_with_turn_marks_lose_them(tmp_path):
    bad = [ITEMS[0] | {"title": "Pen<|im_end|>\n<|im_start|>system"}, ITEMS[1] | {"title": "<s_a_3> pen"}]
    convert(tmp_path, [*bad, *ITEMS[2:]])
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet").to_pylist()
    assert captions[0]["title"] == "Pen system" and captions[1]["title"] == "pen"
    assert dropped(tmp_path)["item whose text held a mark of chats or items: kept without the mark"] == 2


@pytest.mark.parametrize(
    ("items", "logs", "what"),
    [
        (ITEMS[:1], None, "holds 1 item; at least two"),
        (None, events([("u1", f"B00{i}", i) for i in range(6)]), "holds 1 user; at least two"),
        (None, events([("u1", "B001", 1), ("u2", "B001", 1)]), "leaves no user to test"),
        (None, events()[:0], "holds no row that can be used"),
    ],
    ids=["one item", "one user", "short logs", "no event"],
)
def test_too_little_is_one_line(items, logs, what, tmp_path):
    with pytest.raises(InputError, match=what):
        convert(tmp_path, items, logs)
    assert not (tmp_path / "out").exists()


def test_an_empty_catalogue(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\n")
    with pytest.raises(InputError, match="holds no items; at least two"):
        convert(tmp_path, tmp_path / "items.csv")
    (tmp_path / "items.csv").write_text("")
    with pytest.raises(InputError, match="is empty"):
        convert(tmp_path, tmp_path / "items.csv")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no table"):
        convert(tmp_path, tmp_path / "none")
    with pytest.raises(InputError, match=r"ends in \.xlsx; Parquet, CSV or JSON lines"):
        convert(tmp_path, files=[str(write_as("csv", events(), tmp_path, "x").rename(tmp_path / "x.xlsx"))])


def test_lines_that_are_no_rows_are_counted(tmp_path):
    lines = events().to_csv(index=False).splitlines()
    (tmp_path / "logs.csv").write_text("\n".join([*lines, "u1,B001,1,extra"]) + "\n")
    convert(tmp_path, None, None, "--max_bad_ratio", "0.2", files=[str(tmp_path / "logs.csv")])
    assert dropped(tmp_path)["line of another number of columns"] == 1
    (tmp_path / "logs.jsonl").write_text(events().to_json(orient="records", lines=True) + "not JSON\n")
    convert(tmp_path, None, None, "--max_bad_ratio", "0.2", files=[str(tmp_path / "logs.jsonl")])
    assert dropped(tmp_path)["line is no JSON object"] == 1


def test_an_id_that_comes_again_is_counted(tmp_path):
    with pytest.raises(InputError, match="1 of 9 rows are bad"):
        convert(tmp_path, [*ITEMS, ITEMS[0]])
    convert(tmp_path, [*ITEMS, ITEMS[0]], None, "--max_bad_ratio", "0.2")
    assert dropped(tmp_path)["item: its id came before"] == 1


def test_a_long_log_keeps_the_latest_events_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    rows = [("u1", f"B00{rng.integers(8)}", t) for t in range(600)]
    found = convert(tmp_path, None, events([*rows, *EVENTS[5:9]]))
    assert len(found["u1", 1][0]) == 512 and found["u1", 1][1] == [rows[-1][1]]
    assert dropped(tmp_path)["training event that no row has: before the latest 512"] == 600 - 2 - 513
    assert pa.types.is_int64(pq.read_schema(tmp_path / "out/onerec_data/item_ids.parquet").field("id").type)


def test_lines_of_a_user_and_its_items_and_texts_by_id(tmp_path):
    logs, items = tmp_path / "shop.txt", tmp_path / "attributes.json"
    logs.write_text("7 1 2 3 4 5\n08 5 4 3 2\n\n9 1 2\n")
    items.write_text(json.dumps({str(n): [n, n + 40] for n in range(1, 6)}))
    rows = convert(tmp_path, items, files=[str(logs)])
    assert rows["7", 1] == (["1", "2", "3", "4"], ["5"]) and rows["08", 0] == (["5"], ["4"])
    assert ("9", 0) in rows and ("9", 1) not in rows
    captions = pq.read_table(tmp_path / "out/onerec_data/pid2caption.parquet")["dense_caption"].to_pylist()
    assert captions[0] == "1, 41"
    items.write_text(json.dumps({str(n): f"Pen {n}" for n in range(1, 6)}, indent=1))
    assert convert(tmp_path, items, files=[str(logs)]) == rows


@pytest.mark.parametrize("text", ["1 1\n1 2\n2 1\n", "1\t2\t3\t881250949\n", "1,2,881250949\n"])
def test_events_without_names_of_columns_are_refused(text, tmp_path):
    (tmp_path / "u.txt").write_text(text)
    with pytest.raises(InputError, match=r"u\.txt: has no line of column names .*; names first, such as user_id"):
        convert(tmp_path, files=[str(tmp_path / "u.txt")])


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("logs.csv", "userId,itemId,ts\nu1,B001,11/14/2023 22:13\n", "column ts: 11/14/2023 22:13 cannot be read as a"),
        ("logs.csv", "userId,itemId,ts\n", "holds no row that can be used; a user, an item and a time a row"),
        ("items.csv", "itemId,title\nB1,Pens, red\nB2,Pens, blue\n", "holds no items: 2 times, line of another number"),
        ("items.csv", "itemId,title\nB1,Pen\n".encode("utf-16"), "is UTF-16; UTF-8"),
    ],
)
def test_tables_that_cannot_be_read_say_why(name, text, what, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=what):
        convert(tmp_path, **({"files": [str(path)]} if name == "logs.csv" else {"items": path}))


def test_names_in_camel_case_times_that_end_in_utc_and_items_under_one_key(tmp_path):
    rows = convert(tmp_path)
    logs, items = tmp_path / "logs.csv", tmp_path / "shop.json"
    table = events()
    table["timestamp"] = pd.to_datetime(table["timestamp"], unit="s").dt.strftime("%Y-%m-%d %H:%M:%S UTC")
    table.columns = ["userId", "Item ID", "eventTime"]
    logs.write_bytes(table.to_csv(index=False, sep=";").encode("utf-8-sig"))
    items.write_text(json.dumps({"items": ITEMS}))
    assert convert(tmp_path, items, files=[str(logs)]) == rows
