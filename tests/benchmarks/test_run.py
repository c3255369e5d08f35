"""A whole evaluation: eight tasks, a judge, the release's files, the log, and general ability before and after."""

# The checkpoint and the data are those of the evaluation's own tests.
# ruff: noqa: F811

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.results import Scores
from benchmarks.tasks import TASKS
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import message
from onerec.sid import RELEASE_SPEC
from tests.benchmarks.test_evaluate import SPEC, checkpoint, data, run, test_row  # noqa: F401
from tests.benchmarks.test_judge import start  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def eight(data):
    """The data with a test file of every task."""
    for task, key in (
        ("ad", "answer_pid"),
        ("product", "answer_iid"),
        ("label_cond", "answer_pid"),
        ("interactive", "answer_pid"),
    ):
        rows = [test_row(i, [i, i + 1], [i + 3], key) for i in range(4)]
        write_table(data / task / f"{task}_test.parquet", pa.Table.from_pylist(rows))
    for task, answer in (("item_understand", "aaa b"), ("rec_reason", "因为喜欢 score=4")):
        rows = [
            {
                "uuid": str(i),
                "source": "s",
                "messages": json.dumps([message("user", f"讲什么{i}")]),
                "metadata": json.dumps({"uid": i, "answer": answer}),
            }
            for i in range(3)
        ]
        write_table(data / task / f"{task}_test.parquet", pa.Table.from_pylist(rows))
    write_table(data / "product_pid2sid.parquet", pa.parquet.read_table(data / "video_ad_pid2sid.parquet"))
    return data


def test_all_eight_tasks_run_and_say_what_was_not_judged(checkpoint, eight):
    tasks, folder = run(checkpoint, eight, "--bootstrap", "20")
    assert list(tasks) == [*TASKS, "general"]
    assert {"sid_recall@10", "ndcg@32", "position1_pass@1", "coverage@10", "valid_sid"} <= set(tasks["product"])
    assert tasks["item_understand"]["embedding_similarity"] >= 0 and tasks["rec_reason"]["unjudged"] == 3
    assert "llm_score" not in tasks["rec_reason"]
    value = json.loads((folder / "metrics.json").read_text())
    assert value["unjudged"] == {"rec_reason": {"no judge set": 3}}
    low, high = value["intervals"]["video"]["ndcg@10"]
    assert low <= tasks["video"]["ndcg@10"] <= high and set(value["data"]["tests"]) == {*TASKS, "general"}
    assert Scores.load(folder, "video").columns["ndcg@10"].mean() == pytest.approx(tasks["video"]["ndcg@10"], abs=1e-6)


def judge_file(server, tmp_path):
    path = tmp_path / "judge.json"
    path.write_text(json.dumps({"base_url": server.url, "model": "m", "backoff_s": 0.001, "price_prompt": 1}))
    return str(path)


def test_a_judge_scores_text_and_a_second_run_costs_nothing(checkpoint, eight, start, tmp_path):
    server = start()
    flags = ("--tasks", "item_understand", "rec_reason", "--judge", judge_file(server, tmp_path))
    tasks, folder = run(checkpoint, eight, *flags)
    assert tasks["rec_reason"]["llm_score"] == 4 and tasks["rec_reason"]["unjudged"] == 0
    assert 0 <= tasks["item_understand"]["macro_wip_double_weighted_f1"] <= 1
    first = json.loads((folder / "metrics.json").read_text())["judge"]
    assert first["calls"] > 0 and first["usd"] > 0
    again, _ = run(checkpoint, eight, *flags)
    second = json.loads((folder / "metrics.json").read_text())["judge"]
    assert again == tasks and (second["calls"], second["cached"]) == (1, first["calls"] - 1 + first["cached"])


def test_a_judge_that_cannot_be_used_stops_the_run_before_the_model_is_loaded(eight, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(InputError, match="GEMINI_API_KEY"):
        run("no such checkpoint", eight, "--judge", "gemini")


def test_the_releases_catalogue_gives_the_same_metrics(checkpoint, data):
    expected, _ = run(checkpoint, data, "--tasks", "video", "--exclude_seen")
    table = pa.parquet.read_table(data / "video_ad_pid2sid.parquet").to_pylist()
    (data / "video_ad_pid2sid.parquet").unlink()
    value = {
        str(a * 8192**2 + b * 8192 + c): [{"pid": row["pid"], "count": 1, "count_after_downsample": 1}]
        for row in table
        for a, b, c in [row["codes"]]
    }
    (data / "sid2pid.json").write_text(json.dumps(value))
    assert run(checkpoint, data, "--tasks", "video", "--exclude_seen")[0] == expected
    (data / "sid_spec.json").unlink()  # the release's own folder has none: its codebooks are not this model's
    with pytest.raises(InputError, match=r"has codebooks \(4, 4, 4\)"):
        run(checkpoint, data, "--tasks", "video")
    assert RELEASE_SPEC.codebook_sizes == (8192, 8192, 8192)


def test_recall_is_measured_against_beam_width(checkpoint, data):
    _, folder = run(checkpoint, data, "--tasks", "video", "--beam_widths", "1", "16", "--beam_samples", "4")
    points = json.loads((folder / "metrics.json").read_text())["beams"]["video"]
    assert [(p["width"], p["samples"]) for p in points] == [(1, 4), (16, 4)]
    assert points[0]["recall@10"] <= points[1]["recall@10"] and points[1]["recall@32"] == 1


def test_thinking_is_kept_beside_the_answer(checkpoint, data):
    _, folder = run(checkpoint, data, "--tasks", "video", "--enable_thinking", "true")
    lines = [json.loads(line) for line in (folder / "predictions_video.jsonl").read_text().splitlines()]
    assert all(line["thought"] and "</think>" not in line["thought"] for line in lines)


def test_eval_script_logs_the_configuration_first_and_the_table_last(checkpoint, data, tmp_path):
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "BENCHMARK_BASE_DIR": str(tmp_path / "base"),
        "BENCHMARK_DATA_DIR": str(data.parent),
        "DATA_VERSION": data.name,
        "VERSION": "v9",
    }
    command = ["bash", str(ROOT / "benchmarks" / "eval_script.sh"), str(checkpoint), "mine", "false"]
    flags = ["--tasks", "label_pred", "--sample_size", "4"]
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "base" / "auto_eval_logs" / "v9" / "mine.log").read_text().splitlines()
    assert log[1] == "config:" and "  sample_size = 4" in log
    assert [line.split()[0] for line in log if line.startswith("label_pred")] == ["label_pred"] * 3
    assert "Loading" not in "".join(log) and "95 % interval" in "".join(log[-8:])
    value = json.loads((tmp_path / "base" / "results" / "v9" / "results_mine" / "metrics.json").read_text())
    assert value["data"]["version"] == data.name and value["tasks"]["label_pred"]["samples"] == 4


@pytest.mark.parametrize("subfolder", ["", "v1.0"], ids=["the folder itself", "its subfolder v1.0"])
def test_openonerecs_own_call_works_word_for_word(checkpoint, data, tmp_path, subfolder):
    """Given in benchmarks/, with the data and the checkpoint at the root; ``results_1.7B`` is not doubled."""
    root = tmp_path / "clone"
    for name in ("benchmarks", "onerec", "scripts"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    place = root / "raw_data/onerec_data/benchmark_data" / subfolder
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(data, place)
    (root / "checkpoints").mkdir()
    (root / "checkpoints/OneRec-1.7B").symlink_to(checkpoint)
    call = """
        export BENCHMARK_BASE_DIR=$(pwd) BENCHMARK_DATA_DIR="../raw_data/onerec_data/benchmark_data" DATA_VERSION="v1.0"
        bash eval_script.sh ../checkpoints/OneRec-1.7B results_1.7B false"""
    environment = {name: value for name, value in os.environ.items() if name != "VERSION"}
    done = subprocess.run(
        ["bash", "-c", call + " --tasks label_pred --sample_size 4"],
        cwd=root / "benchmarks",
        env=environment | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    results = root / "benchmarks/results/v1.0"
    assert [path.name for path in results.iterdir()] == ["results_1.7B"]
    value = json.loads((results / "results_1.7B/metrics.json").read_text())
    assert value["data"]["version"] == "v1.0" and value["tasks"]["label_pred"]["samples"] == 4
    assert value["config"]["data_dir"] == f"../raw_data/onerec_data/benchmark_data{subfolder and '/v1.0'}"
    assert (root / "benchmarks/auto_eval_logs/v1.0/results_1.7B.log").is_file()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_eval_script_passes_a_signal_on_and_waits_for_what_it_ends_with(tmp_path, sent):
    python = tmp_path / "python"
    python.write_text("#!/bin/bash\ntrap 'echo ended; exit 75' TERM\necho begun\nwhile :; do sleep 0.1; done\n")
    python.chmod(0o755)
    with subprocess.Popen(
        ["bash", str(ROOT / "benchmarks" / "eval_script.sh"), "model", "mine", "false"],
        env={**os.environ, "PYTHON": str(python), "BENCHMARK_BASE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as script:
        assert "begun\n" in iter(script.stdout.readline, "")
        script.send_signal(sent)
        assert script.stdout.read() == "ended\n"  # and nobody holds the pipe any more
    assert script.returncode == 75
    assert (tmp_path / "auto_eval_logs" / "v1.0" / "mine.log").read_text().splitlines()[-1] == "ended"
