"""The shell scripts: they run from any folder, every variable can be set, and they call the right command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell_calls import Calls

STAGE = Path(__file__).resolve().parents[2] / "pretrain"


def printed(script: str, *args: str, cwd: Path, **env: str) -> str:
    """What a script prints with ``echo`` for an interpreter."""
    result = subprocess.run(
        ["bash", str(STAGE / script), *args],
        cwd=cwd,
        env=os.environ | {"PYTHON": "echo"} | env,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("script", "config", "steps", "rate"),
    [
        ("run_pretrain_stg1_local.sh", "stg1.json", -1, 1e-2),
        ("run_pretrain_stg2_local.sh", "toy_pretrain.json", -1, 3e-3),
        ("run_posttrain_sft_local.sh", "toy_sft.json", -1, 3e-3),
        ("examples/pretrain_stg1.sh", "stg1.json", 2000, 2e-4),
        ("examples/pretrain_stg2.sh", "pretrain.json", 5000, 2e-4),
        ("examples/posttrain_sft.sh", "sft.json", 5000, 2e-4),
    ],
)
def test_training_scripts_have_their_settings_and_take_those_of_the_environment(script, config, steps, rate, tmp_path):
    calls = Calls(tmp_path)

    def taken(*flags: str, **variables: str) -> dict:
        done = calls.run(["bash", str(STAGE / script), *flags], tmp_path, **variables)
        assert done.returncode == 0, done.stderr
        [(name, values)] = calls.taken()
        assert name == "pretrain/train.py"
        return values

    plain = taken()
    assert plain["dataset_config"] == f"examples/dataset_config/{config}"
    assert (plain["num_training_steps"], plain["learning_rate"]) == (steps, rate)
    assert plain["freeze_llm"] == ("stg1" in script) and plain["token_dir"] == f"{plain['output_dir']}/tokens"
    assert plain["resume_from"] == "auto" and plain["resume_training_state"]
    variables = {
        "MODEL_DIR": "/m",
        "OUTPUT_DIR": "/o",
        "SOURCES": "/a b,/c",
        "MAX_LENGTH": "99",
        "LEARNING_RATE": "0.5",
    }
    given = taken("--keep_checkpoints", "7", RESUME="0", TOKEN_DIR="", **variables)
    assert given["sources"] == ["/a b", "/c"] and given["token_dir"] is None and given["resume_from"] is None
    wanted = {"model_dir": "/m", "output_dir": "/o", "max_length": 99, "learning_rate": 0.5, "keep_checkpoints": 7}
    assert {name: given[name] for name in wanted} == wanted


def test_several_processes_are_started_by_torchrun(tmp_path):
    out = printed("examples/pretrain_stg2.sh", cwd=tmp_path, NPROC="8", NNODES="2", NODE_RANK="1", MASTER_ADDR="head")
    for flag in (
        "launch.py --nnodes 2",
        "--node_rank 1",
        "--nproc_per_node 8",
        "--master_addr head",
    ):
        assert flag in out


def test_expansion_takes_a_spec_or_sizes(tmp_path):
    calls = Calls(tmp_path)
    command = ["bash", str(STAGE / "scripts/expand_qwen3_vocab.sh")]
    calls.run(command, tmp_path, HF_MODEL_DIR="/m", ITEMIC_LAYER_N="4", VOCAB_SIZE_PER_LAYER="256")
    by_size = calls.taken()[0][1]
    assert (by_size["hf_model_dir"], by_size["output_model_dir"]) == ("/m", "/m_itemic")
    assert (by_size["itemic_layer_n"], by_size["vocab_size_per_layer"], by_size["sid_spec"]) == (4, 256, None)
    calls.run(command, tmp_path, SID_SPEC="/s")
    assert calls.taken()[0][1]["sid_spec"] == "/s"


def test_conversion_and_check_say_which_arguments_they_need(tmp_path):
    out = printed("scripts/convert_checkpoint_to_hf.sh", "/base", "/home", "40", cwd=tmp_path)
    assert "--checkpoint_dir /home/step40/global_step40 --output_dir /home/step40/global_step40/converted" in out
    for script in ("convert_checkpoint_to_hf.sh", "test_hf_model.sh"):
        result = subprocess.run(["bash", str(STAGE / "scripts" / script)], capture_output=True, text=True)
        assert result.returncode == 2 and result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "config", sorted((STAGE / "examples" / "dataset_config").glob("*.json")), ids=lambda path: path.name
)
def test_the_example_configs_are_valid(config):
    from pretrain.dataset_config import load_config

    assert load_config(config).sources


def slurm(folder: Path, **commands: str) -> dict[str, str]:
    """Stand-ins for SLURM's commands in ``folder``, and a job's variables."""
    (folder / "bin").mkdir()
    commands = {
        "scontrol": "[ $1 = requeue ] && echo requeued $2 || printf 'node7\\nnode8\\n'",
        "squeue": "echo RUNNING",
    } | commands
    for name, text in commands.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "123",
        "SLURM_SUBMIT_DIR": str(STAGE),
    }


def test_a_slurm_job_starts_one_torchrun_a_node_with_its_own_rank(tmp_path):
    """srun runs its command once a node."""
    job = slurm(tmp_path, srun='shift\nfor i in 0 1; do SLURM_NODEID=$i "$@"; done')
    script = str(STAGE / "examples" / "pretrain_stg2.sh")
    out = printed("examples/slurm.sh", script, "--keep_checkpoints", "7", cwd=tmp_path, **job)
    runs = [line for line in out.splitlines() if line.startswith("+")]
    assert len(runs) == 2
    for rank, line in enumerate(runs):
        for flag in (
            f"--node_rank {rank}",
            "--nnodes 2",
            "--nproc_per_node 8",
            "--master_addr node7",
            "--master_port 20123",
            "--keep_checkpoints 7",
        ):
            assert flag in line


@pytest.mark.parametrize(
    ("status", "state", "queued"),
    [
        (75, "RUNNING", True),
        (75, "COMPLETING", False),
        (2, "RUNNING", False),
        (137, "RUNNING", False),
        (0, "RUNNING", False),
    ],
)
def test_a_slurm_job_that_was_stopped_goes_back_into_the_queue(tmp_path, status, state, queued):
    job = slurm(tmp_path, srun=f"exit {status}", squeue=f"echo {state}")
    done = subprocess.run(
        ["bash", str(STAGE / "examples/slurm.sh"), "x.sh"],
        env=os.environ | job,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status and ("requeued 123" in done.stdout) == queued, done


@pytest.mark.parametrize("waits", [False, True], ids=["ends later", "ends at once"])
def test_a_slurm_job_passes_the_signal_before_its_end_to_its_steps(tmp_path, waits):
    """Where the first node's end has the others killed, too, the job goes back into the queue."""
    steps = "trap 'echo stopped; exit 137' USR1; echo $$ > pid; echo begun; while :; do sleep 0.1; done"
    scancel = '[ "$*" = "--signal=TERM 123" ] && kill -USR1 $(cat pid)'
    if waits:
        scancel += "; while kill -0 $(cat pid); do sleep 0.01; done"
    job = slurm(tmp_path, srun=steps, scancel=scancel)
    with subprocess.Popen(
        ["bash", str(STAGE / "examples/slurm.sh"), "x.sh"],
        env=os.environ | job | {"SLURM_SUBMIT_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout.readline() == "begun\n"
        run.terminate()
        assert run.stdout.read().splitlines()[-1] == "requeued 123"
    assert run.returncode == 137


def test_the_status_of_several_processes_is_that_of_the_one_that_failed(tmp_path):
    from pretrain.launch import status_of

    assert status_of([75, 75]) == status_of([-15, 75]) == 75
    assert status_of([75, 2, 1]) == 2 and status_of([-9, -15]) == 137
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys, threading\nsys.exit(2) if os.environ['RANK'] == '1' else threading.Event().wait(100)"
    )
    command = [sys.executable, str(STAGE / "launch.py"), "--standalone", "--nproc_per_node", "2", str(worker)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
