"""Real distillation runs on a CPU: verl, Ray, a vLLM server for the student and one for each teacher, as on GPUs.

`scripts/quickstart.sh --smoke` runs the other half: transformers in the place of vLLM (tests/test_quickstart.py).
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.keeper import descendants
from onerec.sid import SidSpec
from onerec.verl.export import last_checkpoint
from tests.clusters import command_line, started, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM, which this platform has no build of"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A random teacher and the student: the teacher with itemic tokens, which it samples a fifth of the time."""
    from pretrain import expand_vocab, make_tiny_qwen3

    folder = tmp_path_factory.mktemp("models")
    (folder / "corpus.txt").write_text("云石国的首都是哪里？ What is 3 plus 4? The answer is 7.\n" * 50)
    tiny = "--hidden_size 32 --num_hidden_layers 2 --intermediate_size 64 --head_dim 32 --vocab_size 300"
    paths = ["--corpus", str(folder / "corpus.txt"), "--output_dir", str(folder / "teacher")]
    make_tiny_qwen3.main([*tiny.split(), *paths])
    expand_vocab.main(
        [
            *("--hf_model_dir", str(folder / "teacher"), "--output_model_dir", str(folder / "student")),
            *("--itemic_layer_n", "3", "--vocab_size_per_layer", "32"),
        ]
    )
    sid = SidSpec((32, 32, 32)).text((1, 2, 3))
    questions = ["What is 3 plus 4?", "云石国的首都是哪里？", f"{sid} 3?"] * 6
    pq.write_table(
        pa.table({"prompt": [[{"role": "user", "content": q}] for q in questions]}),
        folder / "prompts.parquet",
    )
    anchors = [[{"role": "user", "content": f"{sid}{sid}"}]] * 6
    pq.write_table(pa.table({"prompt": anchors}), folder / "anchors.parquet")
    return folder


def command(models: Path, **variables: str) -> dict[str, object]:
    """Arguments of `subprocess` for the stage's script on the small models."""
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "BASE_MODEL": str(models / "student"),
        "TEACHER_MODEL": str(models / "teacher"),
        "DATASET_PARQUET": str(models / "prompts.parquet"),
        "OUTPUT_DIR": str(models / "out"),
        "TRAIN_BATCH_SIZE": "8",
        "MAX_PROMPT_LENGTH": "64",
        "RESPONSE_LENGTH": "8",
        "N_GPUS": "1",
        "LEARNING_RATE": "1e-3",
        "THINK_MODE": "off",
        "SAVE_FREQ": "1",
        "ROLLOUT": "vllm",
        **variables,
    }
    script = ROOT / "verl_distillation" / "recipe" / "onpolicy_distill" / "run_qwen3_distill.sh"
    return {"args": ["bash", str(script)], "env": environment, "text": True}


def distill(models: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(**command(models, **variables), capture_output=True, timeout=3600)


def steps_of(folder: Path) -> list[int]:
    """Steps with metrics, over all attempts."""
    files = sorted(folder.glob("metrics_from_step_*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines(keepends=True)]
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def engines(process: int) -> list[int]:
    """vLLM's engines among the descendants of a process."""
    return [pid for pid in descendants(process) if "EngineCore" in command_line(pid)]


def metrics(folder: Path) -> list[dict]:
    """Metrics of the first attempt's whole steps."""
    lines = (folder / "metrics_from_step_1.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["data"] for line in lines if line.endswith("\n")]


def check_export(models: Path, out: Path) -> None:
    """What a run leaves is a model that transformers loads, with the student's SIDs, and that has learnt."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for step in metrics(out):
        assert math.isfinite(step["actor/grad_norm"]) and step["actor/grad_norm"] > 0
    model = AutoModelForCausalLM.from_pretrained(out / "hf")
    tokenizer, spec = AutoTokenizer.from_pretrained(out / "hf"), SidSpec.load(out / "hf")
    assert tokenizer.convert_tokens_to_ids(spec.tokens[0]) == spec.first_id and tokenizer.chat_template
    before = load_file(models / "student" / "model.safetensors")["model.embed_tokens.weight"].float()
    after = model.get_input_embeddings().weight.float()
    assert not before[: spec.first_id].allclose(after[: spec.first_id], atol=1e-4)


def test_a_run_on_two_nodes_ends_in_one_line_with_its_server_and_its_last_checkpoint_is_a_model(models, ray_cluster):
    """Steps of the top-k loss on an existing cluster, anchors among the prompts; the student's server is killed."""
    out = models / "out"
    settings = {"LOSS": "forward_kl_topk", "TOPK": "8", "MINI_BATCH_SIZE": "4"}
    settings |= {"ANCHOR_PARQUET": str(models / "anchors.parquet"), "ANCHOR_SHARE": "0.25"}
    settings |= {"RAY_ADDRESS": ray_cluster.address, "NNODES": "2"}
    first = command(models, TOTAL_STEPS="500", **settings)
    with started(first.pop("args"), **first, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        assert wait_until(lambda: run.poll() is not None or len(steps_of(out)) >= 2, 3600)
        # The student's on both nodes, the teacher's and the anchor's; one that has just forked is seen twice.
        assert wait_until(lambda: len(engines(ray_cluster.pid)) == 4)
        os.kill(engines(ray_cluster.pid)[0], signal.SIGKILL)
        assert run.wait(timeout=1800) == 2
        error = run.stderr.read()
    assert error.count("error: ") == 1 and "goes on from the last checkpoint" in error
    # Whichever is noticed first: the dead server, or the prompts that it did not answer.
    assert "server died" in error or "came back without an answer" in error
    assert wait_until(lambda: not ray_cluster.at_work()), ray_cluster.at_work()
    assert not (out / "hf").exists()
    assert all(0 <= step["actor/distillation/loss"] < 20 for step in metrics(out))
    # The top 8 of 300 to 400 ids of a random model hold more than their share, and less than everything.
    assert all(8 / 400 < step["actor/distillation/teacher_mass"] < 1 for step in metrics(out))

    # With all steps done, the same command only exports, and Ray is not started.
    kept = last_checkpoint(out / "checkpoints")
    done = distill(models, TOTAL_STEPS=str(kept), **settings)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "main_ppo" not in done.stdout and "distilled model" in done.stdout
    check_export(models, out)
    # It does not go on with other prompts.
    refused = distill(models, TOTAL_STEPS="500", LOSS="reverse_kl")
    assert refused.returncode == 2 and "results that were made from another dataset" in refused.stderr


@pytest.mark.skipif(not os.environ.get("ONEREC_LONG_TESTS"), reason="takes minutes; ONEREC_LONG_TESTS=1 runs it")
def test_the_policy_gradient_runs(models):
    """Two steps of the reverse KL on this machine, itemic tokens among what the student says."""
    out = models / "reverse"
    done = distill(models, LOSS="reverse_kl", TOTAL_STEPS="2", OUTPUT_DIR=str(out))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert steps_of(out) == [1, 2]
    for step in metrics(out):
        assert 0 < step["actor/distillation/masked_share"] < 1
        assert -30 <= step["actor/distillation/advantage_mean"] <= 5
    check_export(models, out)
