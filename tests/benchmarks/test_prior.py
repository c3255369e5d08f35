"""A model and an item prior that rank together: exact, its weight chosen on validation users, bad files refused."""

import json
import math
import shutil

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.catalogues import BenchData
from benchmarks.evaluate import main
from benchmarks.prior import FLOOR, WEIGHTS, PriorFile, TaskPrior
from benchmarks.tasks import TASKS
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.transitions import BACK
from tests.arguments import as_flags

# What follows item p: p + 3 surely, p + 5 a little. The answers of `tiny_data` are the first item and three.
FOLLOWS = {p: {(p + 3) % 16: 2.0, (p + 5) % 16: 0.5} for p in range(16)}


def table(key, rows):
    """A prior's table of {key: {pid: score}}."""
    return pa.table(
        {
            key: list(rows),
            "pids": pa.array([list(row) for row in rows.values()], pa.list_(pa.int64())),
            "scores": pa.array([list(row.values()) for row in rows.values()], pa.list_(pa.float32())),
        }
    )


@pytest.fixture
def prior(tmp_path):
    write_table(tmp_path / "prior.parquet", table("pid", FOLLOWS))
    return tmp_path / "prior.parquet"


def flags(checkpoint, data, prior, **more):
    given = {"result_name": "x", "tasks": "video", "num_beams": 4, "free_sids": 0, "bootstrap": 0, "prior": prior}
    given |= {"model_path": checkpoint, "data_dir": data, "output_dir": data.parent / "r"}
    return as_flags(**{name: value for name, value in (given | more).items() if value is not None})


def evaluated(checkpoint, data, prior, **more):
    """(lines of the predictions, metrics.json)."""
    main(flags(checkpoint, data, prior, **more))
    folder = data.parent / "r" / f"results_{more.get('result_name', 'x')}"
    lines = [json.loads(line) for line in (folder / "predictions_video.jsonl").read_text().splitlines()]
    return lines, json.loads((folder / "metrics.json").read_text())


def alone(checkpoint, data, width, **more):
    """The model's items by log-probability, a row a test row; all of them where ``width`` is the catalogue's."""
    main(flags(checkpoint, data, None, num_beams=width, result_name="alone", **more))
    text = (data.parent / "r" / "results_alone" / "predictions_video.jsonl").read_text()
    lines = map(json.loads, text.splitlines())
    return [dict(zip(line["items"], line["logprobs"], strict=True)) for line in lines]


def logs_of(history):
    """log prior of all 16 items behind a history, by the formula."""
    scale = 2.5  # the total of every row
    total = dict.fromkeys(range(16), 0.0)
    for step, pid in enumerate(history[::-1][:3]):
        for other, value in FOLLOWS[pid].items():
            total[other] += BACK**step * value / scale
    return {pid: math.log(value + FLOOR) for pid, value in total.items()}


@pytest.mark.parametrize("seen", [False, True])
def test_the_two_rank_as_brute_force_over_the_catalogue(tiny_checkpoint, tiny_data, prior, seen):
    protocol = {"exclude_seen": []} if seen else {}
    truth, beams = (alone(tiny_checkpoint, tiny_data, width, **protocol) for width in (16, 4))
    lines, value = evaluated(tiny_checkpoint, tiny_data, prior, prior_weight=0.7, **protocol)
    for i, (scores, found, line) in enumerate(zip(truth, beams, lines, strict=True)):
        history = [(i + j) % 16 for j in range(1 + i)]
        logs = logs_of(history)
        liked = [p for p in sorted(logs, key=lambda p: (-logs[p], p % 4, p // 4)) if logs[p] > math.log(FLOOR)]
        pool = {*found, *[p for p in liked if p in scores][:4]}
        total = {p: scores[p] + 0.7 * logs[p] for p in pool}
        expected = sorted(pool, key=lambda p: -total[p])[:4]
        assert line["items"] == expected
        assert line["logprobs"] == pytest.approx([total[p] for p in expected], abs=1e-3)
        assert not seen or not set(line["items"]) & set(history)
    note = value["prior"]["video"]
    assert note["weight"] == 0.7 and note["chosen"] == "given" and note["key"] == "pid" and len(note["content"]) == 32


def test_the_weight_is_chosen_on_validation_users_and_said(tiny_checkpoint, tiny_data, prior, capsys):
    validation = tiny_data.parent / "validation"
    shutil.copytree(tiny_data, validation)
    chosen = {"validation_dir": validation, "validation_users": 8}
    lines, value = evaluated(tiny_checkpoint, tiny_data, prior, **chosen)
    note = value["prior"]["video"]
    curve = note["chosen"]["curve"]
    assert [point["weight"] for point in curve] == list(WEIGHTS)
    assert note["chosen"]["users"] == 8 and note["chosen"]["metric"] == "ndcg@10"
    best = max(point["ndcg@10"] for point in curve)
    assert note["weight"] == min(point["weight"] for point in curve if point["ndcg@10"] == best)
    said = capsys.readouterr().out
    assert f"weight {note['weight']:g}, the best ndcg@10 of 8 validation users (0: " in said
    assert "result x + prior" in said and note["content"] in said
    again, same = evaluated(tiny_checkpoint, tiny_data, prior, **chosen)
    assert (again, same["prior"]) == (lines, value["prior"])
    again, same = evaluated(tiny_checkpoint, tiny_data, prior, token_budget=64, **chosen)
    assert [line["items"] for line in again] == [line["items"] for line in lines] and same["prior"] == value["prior"]
    # The point of a weight on all of the users is what an evaluation of them with that weight measures.
    _, whole = evaluated(tiny_checkpoint, tiny_data, prior, validation_dir=validation)
    for point in whole["prior"]["video"]["chosen"]["curve"][:: len(WEIGHTS) - 1]:
        _, measured = evaluated(tiny_checkpoint, validation, prior, prior_weight=point["weight"], result_name="y")
        assert measured["tasks"]["video"]["recall@10"] == point["recall@10"]


def test_a_prior_lifts_what_it_knows_and_none_changes_nothing(tiny_checkpoint, tiny_data, prior):
    """The answer of every test row follows the history's first item, which rows of three items or fewer still see."""
    _, with_prior = evaluated(tiny_checkpoint, tiny_data, prior, prior_weight=2.0)
    _, without = evaluated(tiny_checkpoint, tiny_data, None, result_name="plain")
    assert with_prior["tasks"]["video"]["recall@1"] > without["tasks"]["video"]["recall@1"]
    assert "prior" not in without
    with pytest.raises(InputError, match="holds results of the model with another item prior, or without one"):
        main(flags(tiny_checkpoint, tiny_data, prior, prior_weight=1.0, result_name="plain"))


def test_scores_by_uuid_or_uid_and_what_the_file_does_not_know(tiny_checkpoint, tiny_data, tmp_path, capsys):
    rows = {str(i): {(i + 7) % 16: 5.0, 99: 1.0} for i in range(10)}
    for key in ("uuid", "uid"):
        names = rows if key == "uuid" else {int(i): row for i, row in rows.items()}
        write_table(tmp_path / f"{key}.parquet", table(key, names))
        lines, value = evaluated(
            tiny_checkpoint, tiny_data, tmp_path / f"{key}.parquet", prior_weight=50.0, result_name=key
        )
        assert [line["items"][0] for line in lines[:10]] == [(i + 7) % 16 for i in range(10)]
        said = "pid of the prior is not in the catalogue: 1; the prior says nothing, so the model alone ranks: 2"
        assert said in capsys.readouterr().out and value["prior"]["video"]["left_out"] == {
            "pid of the prior is not in the catalogue": 1,
            "the prior says nothing, so the model alone ranks": 2,
        }
    plain, _ = evaluated(tiny_checkpoint, tiny_data, None, result_name="plain")
    assert [line["items"] for line in lines[10:]] == [line["items"] for line in plain[10:]]


def test_items_of_one_sid_add_up_but_for_those_seen(tiny_data, tmp_path):
    codes = pa.array([[0, 0, 0], [0, 0, 0], [1, 0, 0]], pa.list_(pa.int32()))
    write_table(tiny_data / "video_ad_pid2sid.parquet", pa.table({"pid": [1, 2, 3], "codes": codes}))
    write_table(tmp_path / "p.parquet", table("uuid", {"0": {1: 1.0, 2: 2.0, 3: 1.0}}))
    data = BenchData(tiny_data)
    example = data.examples(TASKS["video"])[0]
    prior = TaskPrior(data.prior(tmp_path / "p.parquet"), data.index(TASKS["video"]))
    for skip, total in (((), [0.75, 0.25]), ((1,), [0.5, 0.25]), ((1, 2), [0.25])):
        found = prior(example, [], skip)
        assert found.rows.tolist() == [0, 1][-len(total) :]
        np.testing.assert_allclose(np.exp(found.logs), np.array(total) + FLOOR, rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pid": None}, "has no column pid, uuid or uid"),
        ({"uid": [1, 2]}, "has pid and uid; one of pid, uuid and uid"),
        ({"pids": None}, "has no column pids"),
        ({"scores": None}, "has no column scores"),
        ({"scores": [[1.0], [1.0, 2.0]]}, "row 0 has 2 pids and 1 scores; a score a pid"),
        ({"scores": [[1.0, 2.0], [-1.0, 2.0]]}, "row 1 has the score -1.0; numbers from 0"),
        ({"scores": [[1.0, 2.0], [1.0, None]]}, "row 1 has the score nan"),
        ({"scores": [[0.0, 0.0], [0.0, 0.0]]}, "has no score above 0"),
        ({"pids": [[1, 2], [None, 3]]}, "has a null among its pids"),
        ({"pid": [4, 4]}, "names a pid twice"),
        ({"pid": [4, None]}, "has a null among its pids"),
    ],
)
def test_a_file_that_is_no_prior_is_one_line(tmp_path, changed, said):
    columns = {"pid": [4, 5], "pids": [[1, 2], [1, 3]], "scores": [[1.0, 2.0], [0.5, 0.5]]}
    columns = {name: values for name, values in (columns | changed).items() if values is not None}
    write_table(tmp_path / "p.parquet", pa.table(columns))
    with pytest.raises(InputError, match=said):
        PriorFile.read(tmp_path / "p.parquet")


def test_an_empty_file_and_one_of_other_items_or_users_are_one_line(tiny_checkpoint, tiny_data, tmp_path):
    path = tmp_path / "p.parquet"
    for written, said in (
        (table("pid", FOLLOWS).slice(0, 0), "is an empty table"),
        (table("pid", {1: {77: 1.0}}), "names no item of the catalogue"),
        (table("uid", {500: {1: 1.0}}), "names none of the 12 rows of video by uid"),
        (table("uuid", {"no": {1: 1.0}}), "names none of the 12 rows of video by uuid"),
    ):
        write_table(path, written)
        with pytest.raises(InputError, match=said):
            main(flags(tiny_checkpoint, tiny_data, path, prior_weight=1.0))
    assert not (tiny_data.parent / "r" / "results_x" / "metrics.json").exists()


def test_what_cannot_be_chosen_or_searched_is_said_before_the_model_is_loaded(tiny_data, prior, tmp_path):
    def refused(said, path=prior, **more):
        with pytest.raises(InputError, match=said):
            main(flags(tmp_path / "no model", tiny_data, path, **more))

    refused(
        "--prior_weight: is missing, and there is no --validation_dir to choose it on; --prior_weight, or data with"
    )
    refused("--prior_weight: is missing", validation_dir=tiny_data, validation_users=0)
    refused("video_test.parquet: has no validation users", validation_dir=tmp_path)
    refused("--unconstrained: searches SIDs that no prior knows", prior_weight=1, unconstrained=[])
    refused("are for ranking tasks", prior_weight=1, tasks="label_pred")
    write_table(tmp_path / "u.parquet", table("uid", {1: {1: 1.0}}))
    refused("has scores by uid, the same ones for", tmp_path / "u.parquet", validation_dir=tiny_data)
    refused("no such file", tmp_path / "none.parquet", prior_weight=1)
