"""The whole factory by its one command, on a very small world: it ends with the report, and a cut run goes on."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest

from onerec.tasks import BENCH_TASKS
from tests.clusters import below, wait_until

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
STAGES = [
    "01_world",
    "02_tokenizer",
    "03_data",
    "04_base_model",
    "05_expand_vocab",
    "06_pretrain_stg1",
    "07_pretrain_stg2",
    "08_posttrain_sft",
    "09_distillation",
]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("quickstart") / "run"


def quickstart(run_dir: Path, *flags: str) -> list[str]:
    # GRPO has an end-to-end test of its own.
    return [
        "bash",
        str(ROOT / "scripts" / "quickstart.sh"),
        "--smoke",
        "--set",
        "grpo.NUM_TRAINING_STEPS=0",
        "--run_dir",
        str(run_dir),
        # Four layers all the way also show that no stage takes SIDs for three codes.
        "--set",
        "tokenizer.COLLISIONS=extra_layer",
        *flags,
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2"}


def free(lock: Path) -> bool:
    """Whether no run holds the file."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def test_a_killed_run_goes_on_and_ends_with_the_report(run_dir):
    first = subprocess.Popen(
        quickstart(run_dir),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert wait_until(lambda: (run_dir / ".done" / "03_data").exists() or first.poll() is not None, 3600)
    at_work = below(first.pid)
    first.kill()
    first.wait()
    assert at_work and wait_until(lambda: not any(process.is_running() for process in at_work))
    # What it had started meanwhile holds its folder until it has ended too.
    assert wait_until(lambda: free(run_dir / ".done" / "lock"))
    assert (run_dir / ".done" / "03_data").exists() and not (run_dir / "report").exists()
    second = subprocess.run(
        quickstart(run_dir), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=7200
    )
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    assert "== 03_data: finished before" in second.stdout
    report = run_dir / "report"
    rows = json.loads((report / "report.json").read_text())["rows"]
    names = ["base", "stage1", "stage2", "sft", "distill", "popularity", "cooccurrence", "itemknn", "transitions"]
    assert [row["label"] for row in rows] == names
    assert set(rows[3]["tasks"]) == {*BENCH_TASKS, "general"}
    assert "video R@10" in second.stdout and (report / "report.html").stat().st_size > 5000
    assert {path.name for path in (run_dir / ".done").iterdir()} >= set(STAGES)


def test_a_finished_run_only_makes_the_report_again(run_dir):
    again = subprocess.run(
        quickstart(run_dir), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=1800
    )
    assert again.returncode == 0 and all(f"== {name}: finished before" in again.stdout for name in STAGES)


def test_other_settings_in_the_same_folder_are_refused(run_dir):
    other = subprocess.run(
        quickstart(run_dir, "--seed", "5"),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert other.returncode == 2 and "was begun with other settings" in other.stderr


def test_checkpoints_of_the_chain_load_in_transformers(run_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for stage in ("base", "stage2", "sft", "distill"):
        folder = run_dir / "models" / stage / "hf"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer) and tokenizer.chat_template


def test_a_wrong_flag_is_one_line():
    wrong = subprocess.run(["bash", str(ROOT / "scripts" / "quickstart.sh"), "--fast"], capture_output=True, text=True)
    assert (
        wrong.returncode == 2
        and wrong.stderr.startswith("error: --fast: is not a flag")
        and wrong.stderr.count("\n") == 1
    )
