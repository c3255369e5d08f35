"""Users' and items' own ids in predictions, reports and answers: the same result as with numbers, in people's words."""

import json
import shutil

import pyarrow as pa
import pytest

from benchmarks.catalogues import BenchData
from benchmarks.evaluate import main as evaluate
from benchmarks.recommend import main as recommend
from benchmarks.reporting.examples import Bench, readings
from benchmarks.reporting.rows import Row
from benchmarks.results import load_predictions
from onerec.errors import InputError
from onerec.parquet import write_table
from tests.arguments import as_flags


@pytest.fixture
def named_data(tiny_data, tmp_path):
    """`tiny_data` with a dictionary of users and items."""
    folder = tmp_path / "named"
    shutil.copytree(tiny_data, folder)
    write_table(folder / "item_ids.parquet", pa.table({"id": range(16), "name": [f"B00{i}x" for i in range(16)]}))
    write_table(folder / "user_ids.parquet", pa.table({"id": range(12), "name": [f"user {i}" for i in range(12)]}))
    return folder


def predictions(checkpoint, data, folder):
    flags = {"model_path": checkpoint, "result_name": "x", "data_dir": data, "output_dir": folder}
    evaluate(as_flags(**flags, tasks="video", free_sids=0, bootstrap=0, num_beams=12))
    return load_predictions(folder / "results_x", "video")


def test_predictions_and_examples_have_the_own_ids(tiny_checkpoint, tiny_data, named_data, tmp_path):
    plain = predictions(tiny_checkpoint, tiny_data, tmp_path / "a")
    named = predictions(tiny_checkpoint, named_data, tmp_path / "b")
    for line, other in zip(plain, named, strict=True):
        assert other["items"] == [f"B00{pid}x" for pid in line["items"]]
        assert other["answer"] == [f"B00{pid}x" for pid in line["answer"]] and other["uid"] == f"user {line['uid']}"
        assert {key: other[key] for key in ("uuid", "sids", "logprobs")} == {
            key: line[key] for key in ("uuid", "sids", "logprobs")
        }
    metrics = [json.loads((tmp_path / run / "results_x/metrics.json").read_text())["tasks"] for run in "ab"]
    assert metrics[0] == metrics[1]
    titles = tmp_path / "titles.parquet"
    write_table(titles, pa.table({"pid": [3], "title": ["A red pen"]}))
    shown = readings(Row("x", "stage", tmp_path / "b/results_x", {}), Bench(named_data, [titles], []), 12)
    assert len(shown) == 12 and {item.title for card in shown for item in card.taken} >= {"A red pen [B003x]", "B004x"}
    hits = [any(item.hit for item in card.predicted) for card in shown]
    assert any(hits) and all(", user user " in card.note for card in shown)


def test_a_model_is_asked_by_own_ids(tiny_checkpoint, named_data, capsys):
    flags = as_flags(model_path=tiny_checkpoint, data_dir=named_data, num_beams=16, top=3)
    recommend([*flags, "--user", "user 2"])
    of_user = capsys.readouterr().out
    assert "user user 2" in of_user and of_user.count("B00") == 3 + 3
    # The same items without the user: the same answer.
    recommend([*flags, "--history", "B002x", "B003x", "B004x"])
    answer = capsys.readouterr().out.partition("recommended")[2]
    assert answer and answer == of_user.partition("recommended")[2]
    recommend([*flags, "--history", "B002x", "B003x", "B004x", "--exclude_seen", "--top", "16"])
    unseen = capsys.readouterr().out.partition("recommended")[2]
    assert unseen.count("B00") == 13 and not any(name in unseen for name in ("B002x", "B003x", "B004x"))
    for name, title in (("titles", "a film"), ("product_titles", "a pan")):
        write_table(named_data / f"{name}.parquet", pa.table({"pid": range(16), "title": [title] * 16}))
    both = as_flags(titles=named_data / "titles.parquet", product_titles=named_data / "product_titles.parquet")
    recommend([*flags, *both, "--history", "B002x"])
    titled = capsys.readouterr().out
    assert titled.count("a film") == 4 and "a pan" not in titled
    for wrong, what in ((["--user", "nobody"], "in no test row"), (["--history", "B1"], "is no item"), ([], "missing")):
        with pytest.raises(InputError, match=what):
            recommend([*flags, *wrong])


def test_data_without_a_dictionary_keep_their_numbers(tiny_data):
    line = {"uid": 3, "items": [1, 2], "answer": [2]}
    assert BenchData(tiny_data).own_ids(line, "video") == line
