"""GRPO by its shell script: what it refuses before Ray starts, and one real run on Ray and vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onerec.keeper import STOPPED
from onerec.sid import SidSpec
from onerec.verl.export import last_checkpoint
from tests.clusters import below, command_lines, started, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "verl_rl" / "recipe" / "onerec" / "run_grpo.sh"
SMALL = """
TRAIN_BATCH_SIZE=4 STAGE2_BEAM_SIZE=4 VAL_BEAM_SIZE=8 PROMPT_LENGTH=128 RESPONSE_LENGTH=32 STAGE1_MAX_TOKENS=6
LEARNING_RATE=1e-3 NUM_TRAINING_STEPS=2 TEST_FREQ=2 SAVE_FREQ=2
"""


def command(world: Path, output: Path, *overrides: str, **variables: object) -> dict[str, object]:
    """Arguments of `subprocess` for the script on the small world; ``overrides``: of verl's own settings."""
    settings = {
        "BASE_MODEL": world / "model",
        "DATA_DIR": world / "data",
        "PID2SID": world / "pid2sid.parquet",
        "PRODUCT_PID2SID": "",
        "OUTPUT_DIR": output,
        "PYTHON": sys.executable,
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    settings |= dict(word.split("=") for word in SMALL.split())
    environment = {**os.environ, **{name: str(value) for name, value in (settings | variables).items()}}
    return {"args": ["bash", str(SCRIPT), *overrides], "env": environment, "text": True}


def run(world: Path, output: Path, *overrides: str, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(world, output, *overrides, **variables), capture_output=True, timeout=3600)


def metrics(output: Path, attempt: int) -> list[dict]:
    """Whole lines of an attempt's metrics."""
    file = output / f"metrics_{attempt}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_a_dry_run_prints_the_whole_command_and_starts_nothing(world, tmp_path):
    result = run(
        world,
        tmp_path / "out",
        DRY_RUN=1,
        STAGE2_BEAM_SIZE=4,
        ROLLOUT_N=3,
        N_GPUS=2,
        LR_SCHEDULER_TYPE="cosine",
    )
    assert result.returncode == 0, result.stderr
    assert "-m verl.trainer.main_ppo" in result.stdout and "actor_rollout_ref.rollout.n=12" in result.stdout
    assert "trainer.n_gpus_per_node=2" in result.stdout and not (tmp_path / "out").exists()
    assert "onerec_share_prompts=True" in result.stdout and "actor.strategy=fsdp2" in result.stdout
    assert "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine" in result.stdout
    assert "trainer.val_before_train=True" in result.stdout
    apart = run(world, tmp_path / "out", DRY_RUN=1, SHARE_PROMPTS=0, TEST_FREQ=-1)
    assert apart.returncode == 0 and "onerec_share_prompts" not in apart.stdout
    assert "trainer.val_before_train=False" in apart.stdout, "no validation at all"
    # OpenOneRec's own defaults.
    left = run(world, tmp_path / "out", DRY_RUN=1, ENABLE_THINK="False", ENABLE_NONTHINK="False", STAGE1_MAX_TOKENS=8)
    assert left.returncode == 0, left.stderr


def test_what_cannot_run_is_refused_in_one_line(world, tmp_path):
    from verl_rl import train_grpo

    def refused(words: str, **changes: object) -> None:
        flags = {
            "base_model": world / "model",
            "data_dir": world / "data",
            "catalogue": world / "pid2sid.parquet",
            "output_dir": tmp_path / "out",
            "train_batch_size": 4,
            "prompt_length": 128,
            "response_length": 32,
        } | changes
        argv = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
        with pytest.raises(train_grpo.InputError, match=words):
            train_grpo.main([*argv, "--dry_run"])

    refused("no such file", data_dir=tmp_path)
    empty = tmp_path / "empty"
    shutil.copytree(world / "data", empty)
    pq.write_table(pq.read_table(empty / "test.parquet").slice(0, 0), empty / "test.parquet")
    refused("test.parquet: has no rows", data_dir=empty)
    plain = tmp_path / "plain"
    shutil.copytree(world / "model", plain)
    (plain / "sid_spec.json").unlink()
    refused("its vocabulary holds no SIDs", base_model=plain)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(world / "pid2sid.parquet", other)
    SidSpec((16, 16, 16)).save(other)
    refused(r"has codebooks \[8, 8, 8\]", catalogue=other / "pid2sid.parquet")
    refused("full_hits is not a reward", reward_weights="full_hits=1")
    refused("can be below 0 by rank_aware", advantage="maxrl", reward_weights="full_hit=1,rank_aware=0.1")
    refused("does not divide", n_gpus=3, rollout_tp_size=2)
    refused("merge_ratio: is 0; give a number above 0 to 1", merge_ratio=0)
    refused("at most the model's context of 512", prompt_length=500)
    refused("at least --train_batch_size 64", train_batch_size=64)
    refused("the layers of the model's SIDs: 3", stage2_num_tokens=4)
    refused("at least 267 for thinking and item", enable_think=1, response_length=100)
    refused("at least 267 for thinking and item", enable_think=0, enable_nonthink=0, response_length=100)
    assert not (tmp_path / "out").exists()


def test_an_error_of_the_script_is_one_line(world, tmp_path):
    assert "full_hits is not a reward" in one_line(run(world, tmp_path, REWARD_WEIGHTS="full_hits=1"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed on this machine")
def test_a_run_that_is_told_to_end_leaves_nothing_and_goes_on_on_a_cluster(world, tmp_path, ray_cluster):
    """Rollouts with and without thinking, tensor parallel, two processes; SIGTERM; two more steps on a cluster."""
    import torch
    from safetensors.torch import load_file

    out = tmp_path / "out"
    settings = {
        "N_GPUS": 2,
        "ROLLOUT_TP_SIZE": 2,
        "ROLLOUT_N": 2,
        "ENABLE_THINK": 1,
        "SAVE_FREQ": 1,
    }
    no_first = "trainer.val_before_train=False"  # no validation before the first step
    weights = {"NUM_TRAINING_STEPS": 500, "REWARD_WEIGHTS": "full_hit=1,partial_hit=1,rank_aware=0.1"}
    first = command(world, out, no_first, **settings, **weights)
    with started(first.pop("args"), **first, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert wait_until(lambda: process.poll() is not None or len(metrics(out, 0)) >= 2, 3600)
        assert process.poll() is None, process.stderr.read() + (out / "verl.log").read_text()[-4000:]
        before = below(process.pid)
        assert len(before) > 10 and any("EngineCore" in line for line in command_lines(process.pid))
        process.send_signal(signal.SIGTERM)
        error = process.communicate()[1]
        assert process.returncode == STOPPED
        assert error == "ended by SIGTERM: the same command goes on from the last checkpoint\n"
        assert not any(one.is_running() for one in before), "Ray, vLLM and the trainer are gone"
    assert not (out / "hf").exists()
    first, second = (line["data"] for line in metrics(out, 0)[:2])
    for step in (first, second):
        assert step["onerec/all/valid_sid"] == 1 and step["onerec/all/groups"] == 4
        # Two rollouts a prompt, four different items each; the items of both are one group.
        assert step["onerec/all/group_size"] == 8 and step["onerec/all/distinct_in_rollout"] == 4
        assert step["onerec/all/no_signal"] < 1 and step["actor/grad_norm"] > 0
        # One rollout in two thinks, and a model that never learnt to closes nothing.
        assert 0 < step["onerec/all/thinking_cut"] + step["onerec/all/thinking_stopped"] <= 0.5
        assert step["onerec/seconds/generation"] > 0 and step["onerec/seconds/weight_sync"] > 0
        assert step["training/rollout_probs_diff_max"] < 0.05
    assert first["onerec/all/kl"] == pytest.approx(0, abs=1e-6) and second["onerec/all/kl"] > 0
    assert {"onerec/video/partial_hit", "onerec/ad/entropy"} <= set(first)
    assert "val-aux/onerec/video/recall@10/mean@1" in second

    # It goes on on an existing cluster, one training process and server on each of its nodes, with MaxRL's advantages
    # and without thinking, so without vLLM; what it exports is the average of both models, validated once more on the
    # servers that are there.
    kept = last_checkpoint(out / "checkpoints")
    assert kept >= 1
    settings |= {"RAY_ADDRESS": ray_cluster.address, "NNODES": 2, "N_GPUS": 1, "ROLLOUT_TP_SIZE": 1}
    settings |= {"ENABLE_THINK": 0, "ROLLOUT_N": 1}
    result = run(
        world,
        out,
        no_first,
        **settings,
        NUM_TRAINING_STEPS=kept + 2,
        TEST_FREQ=kept + 2,
        MERGE_RATIO=0.25,
        REWARD_WEIGHTS="full_hit=1,partial_hit=1",
        ADVANTAGE="maxrl",
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert [line["step"] for line in metrics(out, 1)] == [kept + 1, kept + 2]
    for line in metrics(out, 1):
        assert line["data"]["actor/grad_norm"] > 0
        assert line["data"]["critic/advantages/min"] < 0 < line["data"]["critic/advantages/max"]
    assert wait_until(lambda: not ray_cluster.at_work()), ray_cluster.at_work()
    merged = load_file(out / "hf" / "model.safetensors")
    saved = out / "checkpoints" / f"global_step_{kept + 2}" / "actor" / "huggingface"
    base, trained = (load_file(folder / "model.safetensors") for folder in (world / "model", saved))
    assert base.keys() == trained.keys() and not all(torch.equal(base[name], trained[name]) for name in base)
    for name, values in merged.items():
        average = 0.75 * base[name].float() + 0.25 * trained[name].float()
        assert torch.allclose(values.float(), average, atol=1e-6), name
    for name in ("tokenizer.json", "chat_template.jinja", "sid_spec.json", "config.json"):
        assert (out / "hf" / name).read_bytes() == (world / "model" / name).read_bytes()
    assert "checkpoint in" in result.stdout and "generation" in result.stdout
    last = str(kept + 2)
    assert (out / "merged" / f"step_{last}_ratio_0.25.jsonl").exists()
    assert not (out / "merged" / "verl.log").exists()
    validation = json.loads((out / "validation.json").read_text())
    assert list(validation)[-2:] == [last, "merged"] and "recall@10" in validation["merged"]["all"]
    assert "→ step merged" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ONEREC_LONG_TESTS"), reason="takes minutes; ONEREC_LONG_TESTS=1 runs it")
@pytest.mark.parametrize(
    "switches",
    [{"CONSTRAINED": 0}, {"TWO_STAGE": 0, "ROLLOUT_N": 4}, {"STAGE2_MODE": "sample"}],
    ids=["unconstrained", "one stage", "sampled"],
)
def test_the_switches_run(world, tmp_path, switches):
    out = tmp_path / "out"
    result = run(world, out, **switches)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    first = json.loads((out / "metrics_0.jsonl").read_text().splitlines()[1])["data"]
    constrained = switches.get("CONSTRAINED", 1) and switches.get("TWO_STAGE", 1)
    # A random model finds its way to an existing SID by the trie only; what it writes instead is counted by reason.
    assert first["onerec/all/group_size"] == 4 and (first["onerec/all/valid_sid"] == 1) == bool(constrained)
    reasons = [value for name, value in first.items() if name.startswith("onerec/all/malformed/")]
    assert (sum(reasons) == 0) == bool(constrained)
    assert (out / "hf" / "model.safetensors").exists()
