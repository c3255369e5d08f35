"""One's own catalogue by its one command: two tables with text ids, from events to the report, and the model asked."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks.recommend import main as recommend
from benchmarks.results import load_predictions
from benchmarks.serve import parse_args
from tests.arguments import as_flags
from tests.test_recipes import SMALL

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "my_catalogue.sh"
# SFT alone is trained and evaluated; the choice of checkpoints is asked of Amazon's profile, whose child this is.
CHAIN = "stg1.NUM_TRAINING_STEPS=0 stg2.NUM_TRAINING_STEPS=0 sft.NUM_TRAINING_STEPS=4 evaluate.VALIDATION_USERS=0"
CHAIN += " evaluate.BASELINES=popularity evaluate.SAMPLE_SIZE=20 evaluate.PRIOR=0 tokenizer.N_LAYERS=2"
CHAIN += " tokenizer.CODEBOOK_SIZE=16"


def my_catalogue(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=7200)


@pytest.mark.slow
def test_two_tables_with_text_ids_become_a_report(tmp_path, capsys):
    rng = random.Random(0)
    items = [{"sku": f"00{i:03d}-x", "name": f"{rng.choice(['red', 'blue'])} thing {i}"} for i in range(40)]
    events = [
        {"user": f"user {u}", "sku": rng.choice(items)["sku"], "when": f"2024-05-{day + 1:02d}"}
        for u in range(60)
        for day in range(rng.randrange(5, 12))
    ]
    for name, rows in (("items.jsonl", items), ("events.jsonl", events)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    words = ["--items", tmp_path / "items.jsonl", "--logs", tmp_path / "events.jsonl", "--columns", "time=when"]
    sets = [word for setting in (SMALL + CHAIN).split() for word in ("--set", setting)]
    done = my_catalogue(*words, "--run_dir", run, *sets)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    known = {row["sku"] for row in items}
    for result in ("sft", "popularity"):
        lines = load_predictions(run / "benchmarks/results/v1.0" / f"results_{result}", "video")
        last = {event["user"]: event["sku"] for event in events}
        assert len(lines) == 20 and all(line["answer"] == [last[line["uid"]]] for line in lines)
        assert all(line["items"] and set(line["items"]) <= known for line in lines)
    report = (run / "report/report.html").read_text()
    assert any(sku in report for sku in known) and "user user " in report
    # The command that is printed at the end serves the model with the run's own data; asked here without a server.
    asked = next(line for line in done.stdout.splitlines() if line.startswith("ask it: "))
    server = parse_args(["--model_path", shlex.split(asked)[-1]])
    flags = {"model_path": server.model_path, "data_dir": server.data_dir, "titles": server.titles[0]}
    recommend([*as_flags(**flags), "--user", lines[0]["uid"]])
    answer = capsys.readouterr().out.partition("recommended")[2]
    assert sum(sku in answer for sku in known) == 10


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "--items: is missing"),
        (("--items", "x"), "--logs: is missing"),
        (("--items", "x", "--logs"), "--logs: needs a table"),
        (("--items", "x", "--logs", "y", "--columns", "--fresh"), "--columns: needs role=column"),
        (("--items", "x", "--logs", "y", "--fast"), "--fast: is not a flag of my_catalogue.sh"),
    ],
)
def test_a_missing_table_is_one_line(words, what):
    done = my_catalogue(*words)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {what}") and done.stderr.count("\n") == 1


def test_a_table_that_is_not_there_stops_in_the_first_step(tmp_path):
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    words = ["--items", tmp_path / "items.csv", "--logs", f"validation={tmp_path}/no.csv"]  # as good a word as valid
    done = my_catalogue(*words, RUN_DIR=str(tmp_path / "run"))
    said = done.stdout + done.stderr
    assert done.returncode == 2 and f"error: {tmp_path / 'no.csv'}: no such file or folder" in said
    assert "error: 01_world: failed" in said
    # Had the step finished, it would not be done again with other tables unasked.
    (tmp_path / "run/.done/01_world").touch()
    (tmp_path / "items.csv").write_text("item_id,title\na,A\nb,Other\n")
    again = my_catalogue(*words, RUN_DIR=str(tmp_path / "run"))
    assert again.returncode == 2 and "was begun with other settings (< OWN_TABLES=" in again.stderr
