"""General ability before and after: the project's own held-out text, and lm-evaluation-harness over local files."""

# The checkpoint and the data are those of the evaluation's own tests.
# ruff: noqa: F811

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import general
from benchmarks.model import BenchModel
from onerec.errors import InputError
from tests.arguments import as_flags
from tests.benchmarks.test_evaluate import checkpoint, data  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
# A task of two choices that the harness scores by the log-probability of each behind the question.
CHOICES = """task: two_choices
dataset_path: json
dataset_kwargs: {data_files: {test: choices/test.jsonl}}
output_type: multiple_choice
test_split: test
num_fewshot: 0
doc_to_text: "{{question}}"
doc_to_target: gold
doc_to_choice: ["a", "b"]
target_delimiter: " "
metric_list: [{metric: acc}]
metadata: {version: 1.0}
"""


def test_general_ability_before_and_after(checkpoint, data, tmp_path, capsys):
    general.main(
        as_flags(
            models=[f"before={checkpoint}", f"after={checkpoint}"],
            data_dir=data,
            output_dir=tmp_path / "g",
            general_tasks="gsm8k",
        )
    )
    value = json.loads((tmp_path / "g" / "report.json").read_text())
    assert [row["label"] for row in value["rows"]] == ["before", "after"]
    assert {c["metric"] for c in value["paired"]} == {"exact_match", "bits_per_byte"}
    assert all(c["result"]["difference"] == 0 for c in value["paired"])
    assert "gsm8k" in capsys.readouterr().out  # not installed, or its data are not at hand: said either way


def test_harness_results_become_metrics_with_intervals():
    results = {
        "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.1},
        "piqa": {"acc,none": 0.5, "acc_stderr,none": "N/A"},
    }
    found, intervals = general.harness_metrics({"results": results})
    assert found == {"gsm8k exact_match (strict-match)": 0.25, "piqa acc": 0.5}
    assert intervals == {"gsm8k exact_match (strict-match)": [0.054, 0.446]}


def test_the_harness_runs_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    asked = []

    def owned(command, **more):
        asked.append(command)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit('not here')"], **more)

    monkeypatch.setattr(general, "owned", owned)
    for device in ("cpu", "cuda:1", "auto"):
        args = general.parse_args(as_flags(models="a=b", data_dir=".", output_dir=tmp_path, device=device))
        assert general.run_harness(tmp_path, "t", args) == "not here"
    named = [command[command.index("--device") + 1] for command in asked if "--device" in command]
    assert named == ["cpu", "cuda:1"]


def test_a_folder_of_tasks_that_is_not_there_is_named(checkpoint, data, tmp_path):
    with pytest.raises(InputError, match="nowhere: is no folder"):
        general.main(
            as_flags(
                models=f"a={checkpoint}",
                data_dir=data,
                output_dir=tmp_path / "g",
                general_tasks="t",
                general_task_dir=tmp_path / "nowhere",
            )
        )
    assert not (tmp_path / "g").exists()


@pytest.mark.slow
def test_the_harness_runs_over_local_files_and_agrees_with_our_own_scores(tiny_checkpoint, data, tmp_path):
    """gsm8k_local as shipped, a task whose accuracy is worked out here, and a task whose data are missing."""
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (pip install lm-eval)")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "two_choices.yaml").write_text(CHOICES)
    (tmp_path / "tasks" / "lost.yaml").write_text(CHOICES.replace("two_choices", "lost").replace("choices/", "lost/"))
    (tmp_path / "tasks" / "gsm8k_local.yaml").write_text((general.OWN_TASKS / "gsm8k_local.yaml").read_text())
    questions = [{"question": f"Is it {i}?", "gold": i % 2} for i in range(12)]
    problems = [{"question": f"{i} and {i}?", "answer": f"{i}+{i}={2 * i}\n#### {2 * i}"} for i in range(6)]
    for path, rows in (("choices/test", questions), ("gsm8k/train", problems), ("gsm8k/test", problems[:2])):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / f"{path}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    env = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "BENCHMARK_DATA_DIR": str(data),
        "BENCHMARK_BASE_DIR": str(tmp_path / "out"),
        "GENERAL_TASKS": "two_choices,gsm8k_local,lost",
        "GENERAL_TASK_DIR": str(tmp_path / "tasks"),
        "GENERAL_DATA_DIR": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    script = str(ROOT / "benchmarks" / "general.sh")
    done = subprocess.run(["bash", script, f"tiny={tiny_checkpoint}"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    value = json.loads((tmp_path / "out" / "general" / "v1.0" / "results_tiny" / "metrics.json").read_text())
    measured = value["tasks"]["lm_eval"]
    assert set(measured) == {"two_choices acc", "gsm8k_local exact_match (strict-match)"}
    assert "tiny: lost left out: " in done.stdout

    model = BenchModel(tiny_checkpoint, device="cpu")
    asked = [model.tokenizer(f"{row['question']} {c}")["input_ids"] for row in questions for c in "ab"]
    scores = model.text_logprobs(asked, "choices", [2] * len(asked))
    right = [(b > a) == bool(row["gold"]) for row, a, b in zip(questions, scores[::2], scores[1::2], strict=True)]
    assert 0 < sum(right) < 12 and measured["two_choices acc"] == pytest.approx(sum(right) / 12)
    low, high = value["intervals"]["lm_eval"]["two_choices acc"]
    assert low < measured["two_choices acc"] < high
    assert "two_choices acc" in (tmp_path / "out" / "general" / "v1.0" / "report.md").read_text()
