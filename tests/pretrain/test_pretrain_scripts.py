"""The shell scripts: they run from any folder, every variable can be set, and they call the right command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

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
    ("script", "wanted"),
    [
        ("run_pretrain_stg1_local.sh", "dataset_config/stg1.json"),
        ("run_pretrain_stg2_local.sh", "toy_pretrain.json"),
        ("run_posttrain_sft_local.sh", "toy_sft.json"),
        ("examples/pretrain_stg1.sh", "--num_training_steps 2000"),
        ("examples/pretrain_stg1.sh", "dataset_config/stg1.json"),
        ("examples/pretrain_stg2.sh", "--num_training_steps 5000"),
        ("examples/pretrain_stg2.sh", "dataset_config/pretrain.json"),
        ("examples/posttrain_sft.sh", "dataset_config/sft.json"),
    ],
)
def test_training_scripts_pass_their_variables_on(script, wanted, tmp_path):
    out = printed(
        script,
        "--keep_checkpoints",
        "7",
        cwd=tmp_path,
        MODEL_DIR="/m",
        OUTPUT_DIR="/o",
        SOURCES="/a,/b",
        MAX_LENGTH="99",
        LEARNING_RATE="0.5",
    )
    assert wanted in out
    for flag in (
        "--model_dir /m",
        "--output_dir /o",
        "--sources /a /b",
        "--max_length 99",
        "--learning_rate 0.5",
        "--keep_checkpoints 7",
    ):
        assert flag in out
    assert ("--freeze_llm" in out) == ("stg1" in script)
    assert "--resume_from auto" in out and "--resume_from" not in printed(script, cwd=tmp_path, RESUME="0")


def test_several_processes_are_started_by_torchrun(tmp_path):
    out = printed(
        "examples/pretrain_stg2.sh", cwd=tmp_path, NPROC="8", NNODES="2", NODE_RANK="1", MASTER_ADDR="head"
    )
    for flag in (
        "torch.distributed.run",
        "--nnodes 2",
        "--node_rank 1",
        "--nproc_per_node 8",
        "--master_addr head",
    ):
        assert flag in out


def test_expansion_takes_a_spec_or_sizes(tmp_path):
    by_size = printed(
        "scripts/expand_qwen3_vocab.sh",
        cwd=tmp_path,
        HF_MODEL_DIR="/m",
        ITEMIC_LAYER_N="4",
        VOCAB_SIZE_PER_LAYER="256",
    )
    assert (
        "--hf_model_dir /m --output_model_dir /m_itemic --itemic_layer_n 4 --vocab_size_per_layer 256"
        in by_size
    )
    assert "--sid_spec /s" in printed("scripts/expand_qwen3_vocab.sh", cwd=tmp_path, SID_SPEC="/s")


def test_conversion_and_check_say_which_arguments_they_need(tmp_path):
    out = printed("scripts/convert_checkpoint_to_hf.sh", "/base", "/home", "40", cwd=tmp_path)
    assert (
        "--checkpoint_dir /home/step40/global_step40 --output_dir /home/step40/global_step40/converted" in out
    )
    for script in ("convert_checkpoint_to_hf.sh", "test_hf_model.sh"):
        result = subprocess.run(["bash", str(STAGE / "scripts" / script)], capture_output=True, text=True)
        assert result.returncode == 2 and result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "config", sorted((STAGE / "examples" / "dataset_config").glob("*.json")), ids=lambda path: path.name
)
def test_the_example_configs_are_valid(config):
    from pretrain.dataset_config import load_config

    assert load_config(config).sources


def test_a_slurm_job_starts_one_torchrun_a_node_with_its_own_rank(tmp_path):
    """With stand-ins for SLURM's commands: srun runs its command once a node."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'node7\\nnode8\\n'\n")
    (tmp_path / "srun").write_text('#!/bin/sh\nshift\nfor i in 0 1; do SLURM_NODEID=$i "$@"; done\n')
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    out = printed(
        "examples/slurm.sh",
        str(STAGE / "examples" / "pretrain_stg2.sh"),
        "--keep_checkpoints",
        "7",
        cwd=tmp_path,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_NNODES="2",
        SLURM_GPUS_ON_NODE="8",
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_JOB_ID="123",
        SLURM_SUBMIT_DIR=str(STAGE),
    )
    runs = [line for line in out.splitlines() if line.startswith("+")]
    assert len(runs) == 2
    for rank, line in enumerate(runs):
        for flag in (f"--node_rank {rank}", "--nnodes 2", "--nproc_per_node 8", "--master_addr node7", "--master_port 20123", "--keep_checkpoints 7"):  # fmt: skip
            assert flag in line
