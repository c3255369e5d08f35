"""Before a verl run starts: what is checked, what a CPU adds, what the user is told when it ends badly."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onerec.errors import InputError
from onerec.sid import SidSpec
from onerec.verl import launch as verl_launch
from onerec.verl.cluster import Pool
from tests.model_folders import tiny_model

SPEC = SidSpec((2, 3), first_id=10)
POOLS = [Pool("training", "--n_gpus", 2, 1, 1)]


def checkpoint(folder, spec=SPEC, vocab_size=20, shift=0):
    """A checkpoint of ten words and ``spec``'s tokens, the latter ``shift`` places too late."""
    words = [f"w{i}" for i in range(10 + shift)]
    return tiny_model(folder, [*words, *spec.tokens], spec, vocab_size)


def test_a_checkpoint_with_its_itemic_tokens_in_place_passes(tmp_path):
    checked = verl_launch.check_model(checkpoint(tmp_path / "m"), SidSpec((2, 3)))
    assert (checked.spec, checked.vocab_size, checked.context) == (SPEC, 20, 64)


@pytest.mark.parametrize(
    ("make", "codebooks", "words"),
    [
        (lambda folder: folder.mkdir(), None, "is not a checkpoint folder"),
        (lambda folder: (checkpoint(folder) / "sid_spec.json").unlink(), None, "holds no SIDs"),
        (checkpoint, SidSpec((2, 4)), r"has codebooks \[2, 3\]; those of the data: \[2, 4\]"),
        (lambda folder: checkpoint(folder, vocab_size=16), None, "has the id 16, its embedding 16 rows"),
        (lambda folder: (checkpoint(folder) / "model.safetensors").write_bytes(b""), None, "is empty"),
        (
            lambda folder: (checkpoint(folder) / "tokenizer.json").write_text("[]"),
            None,
            "is not a JSON object",
        ),
        (lambda folder: checkpoint(folder, shift=1), None, "its tokenizer has <s_a_0> at 11"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(tmp_path, make, codebooks, words):
    make(tmp_path / "m")
    with pytest.raises(InputError, match=words):
        verl_launch.check_model(tmp_path / "m", codebooks)


def test_heads_that_vllm_cannot_serve_on_a_cpu_are_refused(tmp_path, monkeypatch):
    words = [f"w{i}" for i in range(10)]
    folder = tiny_model(tmp_path / "m", [*words, *SPEC.tokens], SPEC, 20, head_dim=16)
    monkeypatch.setattr(verl_launch, "has_accelerator", lambda: False)
    with pytest.raises(InputError, match="heads of 16; one of 32, 64"):
        verl_launch.check_model(folder)
    monkeypatch.setattr(verl_launch, "has_accelerator", lambda: True)
    verl_launch.check_model(folder)


@pytest.mark.slow
def test_the_known_heads_are_those_of_vllm():
    pytest.importorskip("vllm")
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(verl_launch.CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_empty_data_and_missing_columns_are_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "empty.parquet")
    with pytest.raises(InputError, match="has no rows"):
        verl_launch.check_data(tmp_path / "empty.parquet", ["a"])
    with pytest.raises(InputError, match="prompt"):
        verl_launch.check_data(tmp_path / "empty.parquet", ["prompt"])
    with pytest.raises(InputError, match="no such file"):
        verl_launch.check_data(tmp_path / "none.parquet", ["a"])


@pytest.mark.parametrize(
    ("config", "tokens", "wanted"),
    [
        # 8 bytes x 2 heads x 32 x 3 layers = 1,536 bytes a token; 64 sequences of 369 tokens in whole blocks.
        (
            dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, num_hidden_layers=3),
            369,
            1536 * 625 * 64,
        ),
        (dict(num_attention_heads=2, hidden_size=64, num_hidden_layers=1), 40, 32 << 20),  # at least 32 MiB
        (
            dict(num_attention_heads=16, num_key_value_heads=8, head_dim=128, num_hidden_layers=28),
            4096,
            1 << 30,
        ),
        (
            dict(num_attention_heads=16, num_key_value_heads=8, head_dim=128, num_hidden_layers=28),
            8192,
            229376 * 8448,
        ),
        (dict(text_config={}), 100, 1 << 30),  # a shape that it cannot read
    ],
)
def test_a_server_on_a_cpu_gets_the_cache_that_its_sequences_need(tmp_path, config, tokens, wanted):
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = "distillation.teacher_models.teacher_model.inference"
    (line,) = verl_launch.cpu_server(name, tmp_path, tokens, 64, tp_size=2)
    assert line == f"+{name}.engine_kwargs.vllm.kv_cache_memory_bytes={wanted}"
    # A model in one process needs no worker beside the engine.
    alone = verl_launch.cpu_server(name, tmp_path, tokens, 64, tp_size=1)
    assert alone == [line, f"+{name}.engine_kwargs.vllm.distributed_executor_backend=uni"]


def test_a_cpu_gets_the_platform_and_a_gpu_gets_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    overrides = ["data.train_batch_size=4"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert verl_launch.launch(overrides, ["verl_rl.register"], POOLS, tmp_path, dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "VERL_USE_EXTERNAL_MODULES=onerec.verl.imports,onerec.verl.cpu,verl_rl.register" in printed
    assert "trainer.device=cpu" in printed and "num_gpus=2" in printed and not list(tmp_path.iterdir())
    assert printed.index("trainer.device=cpu") < printed.index("data.train_batch_size=4")
    monkeypatch.setattr(verl_launch, "has_accelerator", lambda: True)
    verl_launch.launch(overrides, ["verl_rl.register"], POOLS, tmp_path, dry_run=True)
    printed = capsys.readouterr().out
    assert "verl_cpu" not in printed and "VERL_PLATFORM" not in printed and "device=cpu" not in printed
    assert "num_gpus" not in printed and "fp32" not in printed


def test_an_override_that_verl_does_not_know_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="no_such_key"):
        verl_launch.launch(["data.no_such_key=1"], [], POOLS, tmp_path, dry_run=True)


def test_another_version_of_verl_is_refused(monkeypatch):
    monkeypatch.setattr(verl_launch.importlib.metadata, "version", lambda name: "0.10.0")
    with pytest.raises(InputError, match=r"is version 0.10.0; its registries are known at 0\.9\.1"):
        verl_launch.check_version()


def test_a_run_that_ends_badly_says_why_and_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = "import sys; print('OSError: [Errno 28] No space left on device'); sys.exit(1)"
    monkeypatch.setattr(verl_launch, "command", lambda overrides: [sys.executable, "-c", script])
    with pytest.raises(InputError, match=r"no space left on the device; .*goes on from the last checkpoint"):
        verl_launch.launch([], [], POOLS, tmp_path)
    assert "Errno 28" in (tmp_path / "verl.log").read_text()


@pytest.mark.parametrize(("late", "status"), [(2, 0), (3, 2)])
def test_a_ray_that_was_not_up_in_time_is_started_again(monkeypatch, tmp_path, late, status):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script = f"""
import os, sys
number = len(os.listdir(sys.argv[1])) + 1
os.mkdir(f"{{sys.argv[1]}}/{{number}}")
if number <= {late}:
    raise Exception("The current node timed out during startup. This could happen because some of the raylet failed")
"""
    (tmp_path / "starts").mkdir()
    command = [sys.executable, "-c", script, str(tmp_path / "starts")]
    monkeypatch.setattr(verl_launch, "command", lambda overrides: command)
    said = "Ray was not up within 30 seconds, 3 times; less other work beside it; the same"
    with pytest.raises(InputError, match=said) if status else contextlib.nullcontext():
        assert verl_launch.launch([], [], POOLS, tmp_path / "out") == 0
    assert len(list((tmp_path / "starts").iterdir())) == 3


def test_the_cause_of_a_failure_is_read_from_the_log():
    assert verl_launch.cause(["x", "(pid=1) onerec.errors.InputError: a.parquet: is empty; rows"]) == (
        "a.parquet: is empty; rows",
        "see the log",
    )
    assert verl_launch.cause(["vllm.v1.engine.exceptions.EngineDeadError: …"])[0] == "a rollout server died"
    assert verl_launch.cause(["ValueError: 2 GPU", "(pid=1) more"]) == ("ValueError: 2 GPU", "see the log")
    # What a run said whose disk was full while torch saved its second checkpoint.
    torch_says = "RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 271808 vs 271700"
    assert verl_launch.cause([torch_says])[0] == "a checkpoint could not be written whole"
    assert verl_launch.cause(["fine"]) is None


def test_verl_takes_the_platform():
    """verl's own look-up finds the CPU platform and an engine for it (in a new process: verl reads this at import)."""
    script = (
        "import verl; from verl.plugin.platform import get_platform;"
        "from verl.workers.engine.base import EngineRegistry;"
        "print(get_platform().device_name, EngineRegistry.get_engine_cls('language_model', 'fsdp2').__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **verl_launch.environment([], on_cpu=True)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "cpu FSDPEngineWithLMHead", result.stderr[-2000:]


def test_a_full_disk_is_named_and_does_not_hide_behind_the_log(monkeypatch, capsys, tmp_path):
    (tmp_path / "verl.log").symlink_to("/dev/full")
    # torch does not say why a checkpoint ends early; that the log could not be written does.
    says = "print('RuntimeError: [enforce fail at inline_container.cc:672]'); raise SystemExit(1)"
    monkeypatch.setattr(verl_launch, "resolve", lambda overrides: None)
    monkeypatch.setattr(verl_launch, "command", lambda overrides: [sys.executable, "-c", says])
    with pytest.raises(InputError, match="no space left on the device; free some space; the same command goes on"):
        verl_launch.launch([], [], POOLS, tmp_path)
    error = capsys.readouterr().err
    assert error.count("warning: ") == 1 and "verl.log: No space left on device" in error
