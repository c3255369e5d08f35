"""One's own tables in the forms that people have: the same catalogue is the same records, nothing is lost unsaid."""

import csv
import gzip
import json
import re
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.own.values import list_in, list_of_text, parsed
from onerec.errors import InputError
from tests.data.test_own import ITEMS, convert, digests, dropped, events


def captions(folder):
    return pq.read_table(folder / "out/onerec_data/pid2caption.parquet").to_pylist()


# --- lists and objects of an item


SHOP = pd.DataFrame(ITEMS).drop(columns="category").assign(title="[New] Pens, red")
NAMES = ["Home", "Pens & more"]
OBJECTS = [{"id": 7, "name": name} for name in NAMES]


@pytest.mark.parametrize("value", [NAMES, [NAMES[:1], NAMES[1:]], OBJECTS, [NAMES[0], None, NAMES[1]]])
@pytest.mark.parametrize("form", ["parquet", "jsonl", "json in csv", "python in csv"])
def test_a_list_is_its_texts_in_every_form_of_file(value, form, tmp_path):
    items = SHOP.assign(categories=[value] * len(SHOP))
    path = tmp_path / "items.csv"
    if form == "parquet":
        items.to_parquet(path := tmp_path / "items.parquet")
    elif form == "jsonl":
        items.to_json(path := tmp_path / "items.jsonl", orient="records", lines=True)
    else:
        items.assign(categories=items.categories.map(json.dumps if "json" in form else repr)).to_csv(path, index=False)
    convert(tmp_path, path)
    first = captions(tmp_path)[0]
    assert first["tags"] == NAMES, "two tags, not one of both"
    assert first["title"] == "[New] Pens, red", "no list, though it begins as one"
    assert first["dense_caption"] == "[New] Pens, red. brand: Acme. categories: Home, Pens & more"


def test_lists_as_numpy_writes_them_are_not_read_as_one_long_text():
    assert list_of_text(str(np.array(["B000", "B001"]))) == ["B000", "B001"]
    assert list_of_text(str(np.array([12, 7]))) == ["12", "7"]
    assert list_in("[12] pens") is None and list_in("['a', 'b']") == ["a", "b"]


def test_a_text_that_is_cut_is_counted(tmp_path):
    convert(tmp_path, [*ITEMS[:7], ITEMS[7] | {"description": "long " * 200}])
    assert len(captions(tmp_path)[7]["dense_caption"]) < 500
    assert dropped(tmp_path) | {"user with fewer than 4 events: for training alone": 1} == {
        "item with a text of more than 400 characters: kept, that text cut there": 1,
        "user with fewer than 4 events: for training alone": 1,
    }


# --- ids


def test_uuids_of_parquet_are_text(tmp_path):
    ids = [uuid.UUID(int=n) for n in range(8)]
    table = {"item_id": pa.array([each.bytes for each in ids], pa.uuid()), "title": [f"Pen {n}" for n in range(8)]}
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    rows = convert(tmp_path, tmp_path / "items.parquet", events().assign(item_id=[str(ids[n % 8]) for n in range(11)]))
    assert rows["u2", 1][1] == [str(ids[0])]
    table["item_id"] = pa.array([b"\xff" * 16] * 8, pa.binary(16))
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    with pytest.raises(InputError, match=r"column item_id of a row holds b'\\xff.*; UTF-8 text"):
        convert(tmp_path, tmp_path / "items.parquet")


def test_whole_numbers_that_pandas_made_floats_in_csv_find_their_items(tmp_path):
    numbers = [row | {"item_id": row["item_id"][3:]} for row in ITEMS]
    logs = events().assign(item_id=lambda table: table.item_id.str[3:].astype(int))
    whole = convert(tmp_path, numbers, logs)
    logs.astype({"item_id": float}).to_csv(tmp_path / "logs.csv", index=False)
    assert convert(tmp_path, numbers, files=[str(tmp_path / "logs.csv")]) == whole
    with pytest.raises(InputError, match=r"names no item of the catalogue \(its ids: '1.0' or '0.0'\)"):
        convert(tmp_path, ITEMS, files=[str(tmp_path / "logs.csv")])


@pytest.mark.parametrize("form", [lambda ids: ids, json.dumps], ids=["lists", "text"])
def test_an_id_with_separators_is_one_target(form, tmp_path):
    items = [{"item_id": name, "title": name} for name in ("red pen", "a,b", "c|d", "e;f")]
    rows = [("u", ["a,b", "c|d"], "red pen"), ("u", ["a,b", "c|d", "red pen"], "e;f"), ("v", ["red pen"], "a,b")]
    logs = pd.DataFrame(rows, columns=["uid", "history", "target"]).assign(history=lambda t: t.history.map(form))
    found = convert(tmp_path, items, logs)
    assert found["u", 1] == (["a,b", "c|d", "red pen"], ["e;f"]) and found["v", 0] == (["red pen"], ["a,b"])


def test_items_without_ids_are_said(tmp_path):
    with pytest.raises(InputError, match="holds no items: 8 rows have no id; an id a row"):
        convert(tmp_path, [row | {"item_id": None} for row in ITEMS])


def test_many_unknown_items_are_warned_of(tmp_path, capsys):
    convert(tmp_path, ITEMS[:3])
    said = "5 of 11 times that the logs name an item, it is not in the catalogue (such as 'B003', where it has 'B000')"
    assert f"warning: {said}" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/manifest.json").read_text())["warnings"][0].startswith(said)
    convert(tmp_path)
    assert "not in the catalogue" not in capsys.readouterr().err


# --- which column is what


def test_the_columns_that_are_read_and_those_that_are_not_are_said(tmp_path, capsys):
    items = [row | {"name": "x", "price": 3} for row in ITEMS]
    convert(tmp_path, items, events(session_id=range(11)).rename(columns={"user_id": "user"}))
    said = capsys.readouterr().out
    assert ": item=item_id, text=title+brand+category, category=category; not read: name, price\n" in said
    assert "columns of the logs: user=user, item=item_id, time=timestamp; not read: session_id\n" in said


def test_a_table_of_many_columns_names_some(tmp_path):
    with pytest.raises(InputError, match=r"it has item_id, c0, .*, c28 and 471 more: --columns text="):
        convert(tmp_path, [{"item_id": n} | {f"c{k}": k for k in range(500)} for n in range(3)])


# --- JSON


def test_keys_that_come_late_are_columns(tmp_path):
    items = [{"item_id": f"B00{n}" if n < 8 else str(n), "title": "Pen"} for n in range(1200)]
    convert(tmp_path, [*items, {"item_id": "last", "title": "Pen", "brand": "Acme"}])
    assert captions(tmp_path)[-1]["dense_caption"] == "Pen. brand: Acme"


def json_document(rows, kind):
    table = pd.DataFrame(rows)
    return {
        "records": table.to_json(orient="records"),
        "columns": table.to_json(),
        "lines with NaN": "".join(json.dumps(row | {"price": float("nan")}) + "\n" for row in rows),
    }[kind]


@pytest.mark.parametrize("name", ["items.json", "items.json.gz"])
@pytest.mark.parametrize("kind", ["records", "columns", "lines with NaN"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_json_as_python_and_pandas_write_it(name, kind, mark, tmp_path):
    convert(tmp_path)
    whole = digests(tmp_path / "out")
    text = mark + json_document(ITEMS, kind).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    convert(tmp_path, tmp_path / name)
    assert digests(tmp_path / "out") == whole


def test_what_stands_between_the_objects_of_a_document_is_counted(tmp_path):
    (tmp_path / "items.json").write_text(json.dumps([*ITEMS, "a note"]))
    with pytest.raises(InputError, match=r"1 of 9 rows are bad .*value of the list is no JSON object"):
        convert(tmp_path, tmp_path / "items.json")


def test_json_that_is_no_text_is_none():
    assert parsed(b'{"a": NaN}') == {"a": None} and parsed('{"a": "\\ud83d"}') is None and parsed(b"\xff") is None


# --- delimited text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("logs.tsv", {"sep": "\t", "quoting": csv.QUOTE_ALL}),
        ("LOGS.CSV", {"lineterminator": "\r\n", "encoding": "utf-8-sig"}),
        ("logs.CSV.GZ", {"sep": ";", "compression": "gzip"}),
    ],
)
def test_delimited_text_as_programs_write_it(name, options, tmp_path):
    whole = convert(tmp_path)
    folder = tmp_path / "logs"
    folder.mkdir()
    events().to_csv(folder / name, index=False, **options)
    assert convert(tmp_path, files=[str(folder / name)]) == whole
    assert convert(tmp_path, files=[str(folder)]) == whole


def test_a_table_of_ids_alone_in_quotation_marks(tmp_path):
    whole = convert(tmp_path)
    (tmp_path / "items.csv").write_text("".join(f'"{name}"\n' for name in ["item_id", *(r["item_id"] for r in ITEMS)]))
    assert convert(tmp_path, tmp_path / "items.csv") == whole


@pytest.mark.parametrize("more", ["", ",Acme"])
def test_lines_behind_a_quotation_mark_that_is_not_closed_are_counted(more, tmp_path):
    lines = [f"B{n:03d},{chr(34) if n == 20 else ''}Pen {n}{more}" for n in range(100)]
    text = "\n".join([f"item_id,title{',brand' if more else ''}", *lines]) + "\n"
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(InputError, match=r"(79|80) of 100 rows are bad .*(is not closed|another number of columns)"):
        convert(tmp_path, tmp_path / "items.csv")
    legal = re.sub(r'"Pen 20', '"Pen 20\n\nblack, blue\nred, green\nfine\nand so on"', text)
    (tmp_path / "items.csv").write_text(legal)
    convert(tmp_path, tmp_path / "items.csv")
    assert captions(tmp_path)[20]["title"].startswith("Pen 20 black, blue red")
