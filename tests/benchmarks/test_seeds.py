"""The table over seeds: metrics by hand, mean and spread, published rows, and what is refused."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks.seeds import main
from onerec.errors import InputError


def run(folder, seed, results, mark="same", target=7):
    """A run folder with one result a model: model to the items that it ranks for the target of two users."""
    for name, rankings in results.items():
        path = folder / f"seed{seed}" / "benchmarks" / "results" / "v1.0" / f"results_{name}"
        path.mkdir(parents=True)
        lines = [{"uuid": str(i), "answer": [target], "items": items} for i, items in enumerate(rankings)]
        (path / "predictions_video.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        metrics = {"name": name, "tasks": {"video": {}}, "data": {"tests": {"video": mark}}}
        (path / "metrics.json").write_text(json.dumps(metrics))
    return folder / f"seed{seed}"


def rows(folder):
    return {row["name"]: row for row in json.loads((folder / "seeds.json").read_text())["rows"]}


def test_means_spread_and_published_rows(tmp_path, capsys):
    first = run(tmp_path, 0, {"sft": [[7, 1], [1, 2, 3, 4, 5, 7]], "popularity": [[1], [2]]})
    # Another seed's SIDs make other test files of the same targets.
    second = run(tmp_path, 1, {"sft": [[7, 1], [1, 7]]}, mark="of other SIDs")
    published = tmp_path / "published.json"
    value = {"metrics": ["recall@10"], "toys": [{"name": "Theirs", "source": "a paper", "values": [0.5]}]}
    published.write_text(json.dumps(value))
    out = tmp_path / "table"
    flags = ["--published", str(published), "--data_set", "toys", "--output_dir", str(out)]
    main(["--runs", str(first), str(second), *flags])
    table = rows(out)
    sft = table["sft"]["metrics"]
    assert sft["recall@5"]["seeds"] == [0.5, 1.0] and sft["recall@5"]["mean"] == 0.75
    assert sft["recall@5"]["sd"] == pytest.approx(math.sqrt(0.125), abs=1e-6)
    # One target: the ideal gain is 1, and a hit in place p gains 1 / log2(p + 1).
    at_6, at_2 = 1 / math.log2(7), 1 / math.log2(3)
    assert sft["ndcg@10"]["seeds"] == pytest.approx([(1 + at_6) / 2, (1 + at_2) / 2], abs=1e-6)
    assert sft["ndcg@5"]["seeds"][0] == 0.5
    assert table["popularity"]["metrics"]["recall@10"] == {"mean": 0, "sd": None, "seeds": [0]}
    assert table["Theirs"]["source"] == "a paper" and list(table["Theirs"]["metrics"]) == ["recall@10"]
    printed = capsys.readouterr().out
    assert "| sft | 0.7500 ± 0.3536 |" in printed and "| Theirs | – | – | 0.5000 | – | published | – |" in printed
    assert (out / "seeds.md").read_text() in printed
    # Models by what they reach, then what others published.
    assert list(table) == ["popularity", "sft", "Theirs"]


def test_runs_that_cannot_stand_in_one_table_are_refused(tmp_path):
    one = run(tmp_path, 0, {"sft": [[7], [7]]})
    mixed = run(tmp_path, 1, {"sft": [[7], [7]]})
    run(tmp_path, 1, {"stage2": [[7], [7]]}, mark="another")
    elsewhere = run(tmp_path, 3, {"sft": [[7], [7]]}, mark="another", target=8)
    fewer = run(tmp_path, 2, {"sft": [[7]]})
    (tmp_path / "empty").mkdir()
    out = ["--output_dir", str(tmp_path / "out")]
    for runs, more, says in (
        ([one, mixed], [], "another version of the data"),
        ([one, elsewhere], [], "another target of 0"),
        ([one, fewer], [], r"measured on \[1, 2\] rows"),
        ([tmp_path / "empty"], [], "has no predictions of video"),
    ):
        with pytest.raises(InputError, match=says):
            main(["--runs", *map(str, runs), *out, *more])
    assert not (tmp_path / "out").exists()


def test_the_published_rows_that_ship_are_whole():
    from pathlib import Path

    from benchmarks.seeds import METRICS, published_rows

    path = Path(__file__).resolve().parents[2] / "scripts" / "recipes" / "published.json"
    for data_set, reached in (("beauty", 0.0648), ("toys_and_games", 0.0712)):
        found = published_rows(path, data_set)
        assert all(row.source and list(row.values) == list(METRICS) for row in found)
        tiger = next(row for row in found if row.name == "TIGER")
        assert tiger.values["recall@10"] == [reached]
