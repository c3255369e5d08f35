"""A real distillation run: verl, Ray, two vLLM servers (student and teacher), on a CPU. Two steps, then the export."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.sid import SidSpec

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
    tiny = f"--hidden_size 32 --num_hidden_layers 2 --intermediate_size 64 --head_dim 32 --vocab_size 300 --corpus {folder / 'corpus.txt'}"
    make_tiny_qwen3.main([*tiny.split(), "--output_dir", str(folder / "teacher")])
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
        **variables,
    }
    script = ROOT / "verl_distillation" / "recipe" / "onpolicy_distill" / "run_qwen3_distill.sh"
    return {"args": ["bash", str(script)], "env": environment, "text": True}


def distill(models: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(**command(models, **variables), capture_output=True, timeout=900)


def steps_of(folder: Path) -> list[int]:
    """Steps with metrics, over all attempts."""
    files = sorted(folder.glob("metrics_from_step_*.jsonl"))
    return [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]


def engines(process: subprocess.Popen) -> list[psutil.Process]:
    """vLLM's engines among the descendants of ``process``; Ray's workers stay in its tree."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "EngineCore" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_two_steps_on_verl_end_with_a_checkpoint_that_transformers_loads(models):
    run = distill(models, TOTAL_STEPS="2")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    lines = (models / "out" / "metrics_from_step_1.jsonl").read_text().splitlines()
    steps = [json.loads(line)["data"] for line in lines]
    assert [step["training/global_step"] for step in steps] == [1, 2]
    for step in steps:
        assert math.isfinite(step["actor/grad_norm"]) and step["actor/grad_norm"] > 0
        assert 0 < step["actor/distillation/masked_share"] < 1
        assert -30 <= step["actor/distillation/advantage_mean"] <= 5

    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, student = models / "out" / "hf", models / "student"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    spec = SidSpec.load(out)
    assert tokenizer.convert_tokens_to_ids(spec.tokens[0]) == spec.first_id and tokenizer.chat_template
    before = load_file(student / "model.safetensors")["model.embed_tokens.weight"].float()
    after = model.get_input_embeddings().weight.float()
    assert not before[: spec.first_id].allclose(after[: spec.first_id], atol=1e-4)

    # All steps are done: the same command only exports again, and Ray is not started.
    again = distill(models, TOTAL_STEPS="2")
    assert again.returncode == 0 and "main_ppo" not in again.stdout and "distilled model" in again.stdout


def test_a_dead_server_ends_the_run_and_the_same_command_goes_on(models):
    out = models / "fault"
    with subprocess.Popen(
        **command(models, OUTPUT_DIR=str(out), TOTAL_STEPS="500"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as run:
        deadline = time.monotonic() + 600
        while run.poll() is None and time.monotonic() < deadline and not steps_of(out):
            time.sleep(0.2)
        found = engines(run)
        assert len(found) == 2, "the servers of student and teacher"
        found[0].kill()
        assert run.wait(timeout=300) == 2
        error = run.stderr.read()
    assert (
        error.count("error: ") == 1 and "server died" in error and "goes on from the last checkpoint" in error
    )
    assert not (out / "hf").exists()

    kept = max(int(path.name.rpartition("_")[2]) for path in (out / "checkpoints").glob("global_step_*"))
    again = distill(models, OUTPUT_DIR=str(out), TOTAL_STEPS=str(kept + 1))
    assert again.returncode == 0, again.stdout[-4000:] + again.stderr[-2000:]
    assert (out / f"metrics_from_step_{kept + 1}.jsonl").exists() and steps_of(out)[-1] == kept + 1
    assert (out / "hf" / "model.safetensors").exists()
