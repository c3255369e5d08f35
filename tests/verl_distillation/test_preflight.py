"""Distillation's command line: what it refuses before Ray starts, what it asks verl for, what it exports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.errors import InputError
from onerec.sid import SidSpec
from onerec.verl import cluster
from onerec.verl.launch import cpu_overrides, resolve
from tests.model_folders import tiny_model
from verl_distillation.anchors import mix
from verl_distillation.distill import parser
from verl_distillation.preflight import check, place
from verl_distillation.settings import overrides

ROOT = Path(__file__).resolve().parents[2]
BASE = ["a", "b", "c", "d", "<|im_start|>", "<|im_end|>"]
SPEC = SidSpec((2, 3), first_id=len(BASE))


def checkpoint(folder: Path, tokens: list[str], rows: int = 16, spec: SidSpec | None = None) -> Path:
    """A tiny checkpoint of these tokens."""
    return tiny_model(folder, tokens, spec, rows)


@pytest.fixture
def files(tmp_path):
    """Flags of a run whose files are all in order."""
    prompts = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"prompt": [[{"role": "user", "content": "a"}]] * 8}), prompts)
    return {
        "--base_model": checkpoint(tmp_path / "student", BASE + SPEC.tokens, spec=SPEC),
        "--teacher_model": checkpoint(tmp_path / "teacher", BASE),
        "--dataset_parquet": prompts,
        "--output_dir": tmp_path / "out",
        "--train_batch_size": 4,
        "--n_gpus": 1,
        "--max_prompt_length": 30,
        "--response_length": 20,
    }


def parse(files: dict) -> object:
    return parser().parse_args([str(item) for pair in files.items() for item in pair])


def test_the_first_extended_id_is_the_students_first_itemic_one(files):
    assert check(parse(files)) == len(BASE)
    assert check(parse(files | {"--extend_vocab_start_token": 5})) == 5


def test_what_is_wrong_is_said_before_ray_starts(files, tmp_path):
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.list_(pa.string()))}), empty)
    other = checkpoint(tmp_path / "other", ["a", "c", "b", *BASE[3:]])
    small = checkpoint(tmp_path / "small", BASE, rows=4)
    hollow, pointer = checkpoint(tmp_path / "zero", BASE), checkpoint(tmp_path / "pointer", BASE)
    (hollow / "model.safetensors").write_bytes(b"")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    anchors = {"--anchor_parquet": files["--dataset_parquet"], "--loss": "forward_kl_topk"}
    cases = [
        ({"--teacher_model": other}, "its id 1 is 'c', the student's is 'b'"),
        ({"--teacher_model": hollow}, "model.safetensors: is empty"),
        ({"--teacher_model": pointer}, "model.safetensors: is a Git LFS pointer"),
        ({"--teacher_model": small}, "its tokenizer has the id 5, its embedding 4 rows"),
        ({"--extend_vocab_start_token": 8}, "its id 6 is 'no token', the student's is '<s_a_0>'"),
        ({"--teacher_model": tmp_path / "none"}, "is not a checkpoint folder"),
        ({"--base_model": files["--teacher_model"]}, "its vocabulary holds no SIDs"),
        ({"--dataset_parquet": tmp_path / "none.parquet"}, "no such file"),
        ({"--dataset_parquet": empty}, "has no rows"),
        ({"--train_batch_size": 9}, "has 8 prompts, fewer than one batch of 9"),
        ({"--max_prompt_length": 50}, "has a context of 64 tokens"),
        ({"--distill_adv_min": 6}, "6 is not below --distill_adv_max 5"),
        ({"--temperature": 0}, "is 0"),
        ({"--mini_batch_size": 3}, "3 does not divide the 4 prompts of a step"),
        ({"--mini_batch_size": 0}, "--mini_batch_size: is 0; give a whole number from 1, or -1"),
        ({"--merge_ratio": 0}, "--merge_ratio: is 0"),
        ({"--anchor_parquet": tmp_path / "none.parquet"}, "no such file"),
        ({"--anchor_parquet": files["--dataset_parquet"]}, "does not go with --loss reverse_kl"),
        (anchors | {"--anchor_share": 1}, "--anchor_share: is 1"),
    ]
    for change, words in cases:
        with pytest.raises(InputError) as error:
            check(parse(files | change))
        assert words in str(error.value) and "\n" not in str(error.value)


def test_student_teacher_and_anchors_must_fit_together(files, tmp_path, monkeypatch):
    """By the defaults and a machine's `nvidia-smi`, before anything starts."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "_cpu_build", lambda: False)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "echo 'GPU 0: a card'\n" * 8)
    program.chmod(0o755)
    del files["--n_gpus"]
    files["--train_batch_size"] = 168
    hollow, pointer = checkpoint(tmp_path / "zero", BASE), checkpoint(tmp_path / "pointer", BASE)
    (hollow / "model.safetensors").write_bytes(b"")
    (pointer / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    anchors = {"--anchor_parquet": files["--dataset_parquet"]}
    for change, wanted in (
        ({}, 7),
        (anchors, 6),
        (anchors | {"--teacher_tp_size": 2, "--teacher_n_gpus": 2}, 4),
    ):
        args = parse(files | change)
        pools = place(args)
        assert args.n_gpus == wanted and sum(pool.gpus for pool in pools) == 8
    with pytest.raises(InputError, match="7 GPUs do not share the 96 rows of an update alike"):
        place(parse(files | {"--n_gpus": 7, "--mini_batch_size": 48, "--rollout_n": 2}))
    with pytest.raises(
        InputError, match=r"8 for the student, 2 for the teachers \(1 of them the anchors'\) do not fit"
    ):
        place(parse(files | anchors | {"--n_gpus": 8}))
    with pytest.raises(InputError, match="tensor parallelism 2 of the teacher does not divide 1 × 3 GPUs"):
        place(parse(files | {"--teacher_n_gpus": 3, "--teacher_tp_size": 2}))


def test_settings_reach_verl(files):
    args = parse(
        files | {"--distill_adv_min": -7, "--think_mode": "off", "--mask_response_if_have_extend_token": "True"}
    )
    wanted = overrides(args, 6, on_cpu=True)
    for line in (
        "+distillation.distillation_loss.adv_min=-7.0",
        "+distillation.distillation_loss.adv_max=5.0",
        "+distillation.distillation_loss.extend_vocab_start=6",
        "+distillation.distillation_loss.mask_response_if_extended=True",
        "+data.think_mode=off",
        f"+data.model_path={files['--base_model']}",
        "+data.apply_chat_template_kwargs.enable_thinking=False",
        "distillation.distillation_loss.use_policy_gradient=True",
    ):
        assert line in wanted
    topk = overrides(parse(files | {"--loss": "forward_kl_topk", "--topk": 9}), 6, on_cpu=True)
    assert "distillation.distillation_loss.topk=9" in topk
    assert "distillation.distillation_loss.use_policy_gradient=False" in topk
    # verl would give a teacher the student's rollout, and refuses the top k of any that is not vLLM or SGLang.
    for rollout in ("vllm", "transformers"):
        lines = overrides(parse(files | {"--loss": "forward_kl_topk", "--rollout": rollout}), 6, on_cpu=True)
        assert "distillation.teacher_models.teacher_model.inference.name=vllm" in lines
    for lines, how in ((wanted, "masked"), (topk, "fixed")):
        assert "+actor_rollout_ref.model.override_config.extend_vocab_start=6" in lines
        assert f"+actor_rollout_ref.model.override_config.extended_logits={how}" in lines


def test_anchors_are_mixed_in_and_have_the_student_as_their_teacher(files, tmp_path):
    rec = tmp_path / "train.parquet"
    turns = [[{"content": f"推荐{i}", "role": "user"}] for i in range(20)]
    pq.write_table(pa.table({"data_source": ["onerec/video"] * 20, "prompt": turns}), rec)
    mixed = tmp_path / "out" / "prompts.parquet"
    assert mix(files["--dataset_parquet"], [rec], 0.2, 7, mixed) == (8, 2)
    first = mixed.read_bytes()
    rows = pq.read_table(mixed).to_pylist()
    assert [row["data_source"] for row in rows] == ["onpolicy_distillation"] * 8 + ["anchor"] * 2
    assert rows[-1]["prompt"][0]["content"].startswith("推荐")
    mix(files["--dataset_parquet"], [rec], 0.2, 7, mixed)
    assert mixed.read_bytes() == first
    assert mix(files["--dataset_parquet"], [rec], 0.9, 7, mixed) == (8, 20)
    with pytest.raises(InputError, match="is none"):
        mix(files["--dataset_parquet"], [rec], 0.01, 7, mixed)
    # Of two files each gives its half, the first no more than it has.
    few = tmp_path / "few.parquet"
    pq.write_table(pa.table({"prompt": [[{"content": "解释", "role": "user"}]] * 2}), few)
    assert mix(files["--dataset_parquet"], [few, rec], 0.5, 7, mixed) == (8, 6)
    words = [row["prompt"][0]["content"][:2] for row in pq.read_table(mixed).to_pylist()]
    assert words[8:] == ["解释"] * 2 + ["推荐"] * 4

    args = parse(files | {"--anchor_parquet": rec, "--loss": "forward_kl_topk", "--teacher_n_gpus": 2})
    lines = [*cpu_overrides(), *overrides(args, 6, on_cpu=True)]
    resolve(lines)  # every name is one of verl's
    assert f"data.train_files={files['--output_dir'] / 'prompts.parquet'}" in lines
    assert "distillation.n_gpus_per_node=3" in lines
    teachers = [line.split("teacher_models.", 1)[1] for line in lines if "teacher_models." in line]
    assert {"general.num_replicas=2", "anchor.num_replicas=1", "anchor.key=anchor"} <= set(teachers)
    assert {"general.inference.load_format=auto", "anchor.inference.load_format=auto"} <= set(teachers)
    assert f"anchor.model_path={files['--base_model']}" in teachers


def test_a_dry_run_prints_the_whole_command_and_starts_nothing(files):
    names = {
        "BASE_MODEL": "--base_model",
        "TEACHER_MODEL": "--teacher_model",
        "DATASET_PARQUET": "--dataset_parquet",
        "OUTPUT_DIR": "--output_dir",
        "TRAIN_BATCH_SIZE": "--train_batch_size",
        "N_GPUS": "--n_gpus",
        "MAX_PROMPT_LENGTH": "--max_prompt_length",
        "RESPONSE_LENGTH": "--response_length",
    }
    variables = {name: str(files[flag]) for name, flag in names.items()}
    script = ["bash", str(ROOT / "verl_distillation/recipe/onpolicy_distill/run_qwen3_distill.sh")]
    run = {"capture_output": True, "text": True}
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "DRY_RUN": "1",
        "DISTILL_ADV_MIN": "-3",
        "CUDA_VISIBLE_DEVICES": "",
    }
    result = subprocess.run(script, env=environment | variables, **run)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "verl.trainer.main_ppo" in result.stdout and "adv_min=-3.0" in result.stdout
    assert not files["--output_dir"].exists()
    bad = subprocess.run(script, env=environment | variables | {"TEACHER_MODEL": "none"}, **run)
    assert bad.returncode == 2 and bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
    unset = subprocess.run(script, env=environment | variables | {"BASE_MODEL": ""}, **run)
    assert unset.returncode == 2 and unset.stderr.startswith("error: BASE_MODEL: is not set")


def test_prompts_carry_the_switch_of_the_think_mode():
    from onerec.render import RENDERERS
    from onerec.render.qwen3 import chat_template

    jinja = pytest.importorskip("jinja2")
    template = jinja.Environment().from_string(chat_template())
    turns, renderer = [{"role": "user", "content": "一加一等于几？"}], RENDERERS["qwen3"]
    # As the data set and verl's agent loop make a prompt, and as evaluation does.
    for mode, thinking in (("on", True), ("off", False), ("auto", None)):
        messages = turns if thinking is None else renderer.with_switch(turns, thinking)
        extra = renderer.template_without_thinking if mode == "off" else {}
        text = template.render(messages=messages, add_generation_prompt=True, **extra)
        assert text == renderer.prompt_text(turns, thinking)


def test_a_distillation_goes_on_with_what_it_began_with_alone(files, monkeypatch):
    """A student, teacher or prompts made anew are never given the old run's model; verl is not started for it."""
    from safetensors.numpy import load_file, save_file

    from verl_distillation import distill

    started = []
    monkeypatch.setattr(distill, "launch", lambda *args, **kwargs: started.append(kwargs["dry_run"]))
    monkeypatch.setattr(distill, "export", lambda *args: None)
    argv = [str(item) for pair in files.items() for item in pair]
    distill.main(argv)
    distill.main(argv)
    weights = files["--teacher_model"] / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"][1] += 1
    save_file(tensors, weights)
    with pytest.raises(InputError, match="out: holds results that were made from another teacher_model; give"):
        distill.main(argv)
    assert started == [False, False]
    distill.main([*argv, "--resume", "false"])
    distill.main(argv)
