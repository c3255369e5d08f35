"""scripts/results.py on a small repository of its own."""

from __future__ import annotations

import importlib.util
import json
from decimal import Decimal
from pathlib import Path

import pytest

from onerec.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "results.py")
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)
PAGE = "# A title\n\nQuestion: What\nof it?\n\n<!-- results: t -->\nold\n<!-- end of results -->\n\nDecided: so.\n"
TABLE = {
    "name": "t",
    "title": "T",
    "command": "bash x.sh",
    "machine": "a machine",
    "seeds": [0, 1],
    "section": "GRPO",
    "columns": ["model", "recall", "change", "loss"],
    "units": {"change": "%"},
    "signed": ["change"],
}
ROWS = """[
 {"model": "a", "recall": 0.0620, "change": 4.20, "loss": null},
 {"model": "b", "recall": {"mean": 0.1, "sd": 0.02}, "change": -1, "loss": [12345, 2]},
 {"model": "c", "recall": {"value": 0.30, "low": -0.1, "high": 0.5}}
]"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    folder = tmp_path / "experiments/2026-01-02-a"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(PAGE)
    table = json.dumps(TABLE)[:-1] + f', "rows": {ROWS}}}'
    (folder / "results.json").write_text(f'{{"tables": [{table}]}}')
    (tmp_path / "experiments/README.md").write_text("<!-- results: index -->\n<!-- end of results -->\n")
    (tmp_path / "README.md").write_text("# R\n\n<!-- results: headline -->\n<!-- end of results -->\n")
    row = {
        "what": "w",
        "metric": "m",
        "here": "{0}",
        "beside": "-",
        "values": [["2026-01-02-a", "t", {"model": "b"}, "recall"]],
    }
    (tmp_path / "experiments/headline.json").write_text(json.dumps({"rows": [row]}))
    return tmp_path


def test_every_document_is_written_and_stays(root, capsys):
    results.main([])
    assert capsys.readouterr().out.endswith("4 documents written\n")
    page = (root / "experiments/2026-01-02-a/README.md").read_text()
    assert (
        "| a | 0.0620 | +4.20 % | – |\n| b | 0.1 ± 0.02 | −1 % | 12,345, 2 |\n| c | 0.30 (−0.1 to 0.5) |  |  |\n"
        in page
    )
    assert (
        "\n`bash x.sh`; a machine; seeds 0, 1.\n<!-- end of results -->\n\nDecided: so.\n" in page and "old" not in page
    )
    assert "## GRPO\n\n### T\n\n| model |" in (root / "RESULTS.md").read_text()
    assert (
        "- 2026-01-02 [A title](2026-01-02-a/README.md): What of it?\n" in (root / "experiments/README.md").read_text()
    )
    assert "| w | m | 0.1 ± 0.02 | - |\n" in (root / "README.md").read_text()
    results.main([])
    assert capsys.readouterr().out == "0 documents written\n"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"machine"', '"machin"', "t: machine is missing or unknown"),
        ('"recall": 0.0620', '"recal": 0.0620', "t: recal is no column"),
        ('"GRPO"', '"Other"', "t: Other is no section"),
        ('"name": "t"', '"name": "u"', "differ in t"),
        ('"a machine"', '""', "t: has no title or no machine"),
        ('{"tables"', '{"tables', "is not JSON"),
    ],
)
def test_what_does_not_fit_is_said(root, old, new, says):
    path = root / "experiments/2026-01-02-a/results.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=says):
        results.render()


def test_a_headline_that_names_no_row_is_said(root):
    path = root / "experiments/headline.json"
    path.write_text(path.read_text().replace('"b"', '"z"'))
    with pytest.raises(InputError, match="0 rows with"):
        results.render()


def test_a_run_is_added_with_its_digits(root, capsys):
    folder = root / "experiments/2026-01-02-a"
    row = {"label": "sft", "tasks": {"video": {"recall@10": 0.25, "pass@32": 0.9}}}
    row["intervals"] = {"video": {"recall@10": [0.2, 0.35]}}
    (root / "report.json").write_text(json.dumps({"title": "x", "rows": [row]}).replace("0.25", "0.2500"))
    metrics = {"recall@10": {"mean": 0.5, "sd": 0.1, "seeds": [0.4, 0.6]}}
    rows = [{"name": name, "source": source, "metrics": metrics} for name, source in (("sft", ""), ("p", "arXiv"))]
    (root / "seeds.json").write_text(json.dumps({"rows": rows}))
    for source in ("report", "seeds"):
        results.main(["--add", str(root / f"{source}.json"), "--experiment", str(folder), "--table", source])
    tables = {table["name"]: table for table in results.read(folder / "results.json")["tables"]}
    assert list(tables) == ["t", "report", "seeds"]
    assert (
        tables["t"]["rows"][0]["recall"] == Decimal("0.0620")
        and '"recall": 0.0620' in (folder / "results.json").read_text()
    )
    assert [results.cell(v) for v in tables["report"]["rows"][0].values()] == [
        "sft",
        "video",
        "recall@10",
        "0.2500 (0.2 to 0.35)",
    ]
    assert [results.cell(v) for v in tables["seeds"]["rows"][0].values()] == ["sft", "0.5 ± 0.1"]
    assert len(tables["seeds"]["rows"]) == 1
