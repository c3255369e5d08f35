"""Processes that share a model train what one trains: DDP, ZeRO-1/2/3 and FSDP2 on gloo, with resume and conversion."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from onerec.keeper import STOPPED
from onerec.sid import SidSpec
from pretrain import convert_checkpoint_to_hf
from pretrain.checkpoint import check_same_run, whole_checkpoints
from pretrain.model import PackedLM, load_lm
from pretrain.ranks import Processes
from pretrain.sharding import Fsdp, choose
from pretrain.train import main
from tests.arguments import as_flags
from tests.pretrain.test_train import argv, curve, weights

STAGE = Path(__file__).resolve().parents[2] / "pretrain"
RESUME = ("--resume_from", "auto", "--resume_training_state")
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not DEEPSPEED, reason="deepspeed is not installed")
ZERO = [f"zero{stage}" for stage in (1, 2, 3)]
EVERY = ["fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ZERO)]


def sharded(name: str) -> list[str]:
    return ["--fsdp" if name == "fsdp2" else "--deepspeed", str(STAGE / "examples" / f"{name}.json")]


HALF = ["--precision", "bf16"]
WAYS_THAT_STOP = {"ddp": HALF, "shards": [*sharded("fsdp2"), *HALF]}
if DEEPSPEED:
    WAYS_THAT_STOP["zero"] = [*sharded("zero2"), *HALF]


def torchrun(processes: int, script: Path, *args: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc_per_node", str(processes), str(script), *args],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=7200,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> Path:
    """Folders of runs: ``one`` and ``one_stage1`` of one process that accumulates two rows, and those of two processes.

    ``<way>`` trains everything, is stopped between two checkpoints and goes on; ``<way>_stage1`` trains itemic rows
    alone.
    """
    root = tmp_path_factory.mktemp("sharding")
    frozen, two_rows = ["--freeze_llm"], ["--gradient_accumulation_steps", "2"]
    one = pq.read_table(next((world / "rec").glob("*.parquet"))).slice(0, 1)  # fewer rows than processes
    pq.write_table(one, root / "one.parquet")
    validated = ["--eval_sources", str(root / "one.parquet")]
    main(argv(world, root / "one", *two_rows))
    main(argv(world, root / "one_stage1", *two_rows, *frozen, model="untied_itemic"))
    plan = [{"argv": gradient_run(world, root, 2), "kill_at": None}]
    up_to_step_3(root / "one", root / "moved")
    moved = argv(world, root / "moved", "--save_checkpoint_per_step", "2", *RESUME)
    plan.append({"argv": moved, "kill_at": 5})
    stops = {name: stopped_and_whole(world, root, name, flags) for name, flags in WAYS_THAT_STOP.items()}
    last = stops.pop("zero", [])  # DeepSpeed leaves its marks on a process
    plan += [run for way in stops.values() for run in way]
    for name in ["fsdp2", *(ZERO if DEEPSPEED else [])]:
        flags = [*sharded(name), *validated, "--recompute", "attention"]
        plan.append({"argv": argv(world, root / name, *flags), "kill_at": 5})
        plan.append({"argv": argv(world, root / name, *flags, *RESUME), "kill_at": None})
        stage1 = argv(
            world, root / f"{name}_stage1", *sharded(name), *frozen, "--recompute", "full", model="untied_itemic"
        )
        plan.append({"argv": stage1, "kill_at": None})
    (root / "runs.json").write_text(json.dumps(plan + last))
    torchrun(2, Path(__file__).parent / "sharded_runs.py", str(root / "runs.json"))
    return root


def up_to_step_3(run: Path, copy: Path) -> None:
    """What a run had left when it ended after its third step of six."""
    shutil.copytree(run, copy)
    for name in ("step6", "hf"):
        shutil.rmtree(copy / name)


def stopped_and_whole(world: Path, root: Path, name: str, flags: list[str]) -> list[dict]:
    """A run without a stop, and one that a signal stops and that goes on."""
    stopped = argv(world, root / f"{name}_stopped", *flags)
    return [
        {"argv": argv(world, root / f"{name}_whole", *flags), "kill_at": None},
        {"argv": stopped, "kill_at": None, "signal_at": 4, "status": STOPPED},
        {"argv": [*stopped, *RESUME], "kill_at": None},
    ]


def gradient_run(world: Path, root: Path, processes: int) -> list[str]:
    """One step of four rows, unclipped: the optimizer then holds a tenth of the gradient (beta1 is 0.9)."""
    rows = ["--gradient_accumulation_steps", str(4 // processes)]
    once = ["--num_training_steps", "1", "--clip_range", "0", "--logging_per_step", "1"]
    tokens = [
        "--token_dir",
        str(root / f"tokens{processes}"),
    ]  # one process tokenizes, the others wait for it
    return argv(world, root / f"gradient{processes}", *rows, *once, *tokens)


@pytest.mark.slow
def test_four_rows_give_one_gradient_however_they_are_dealt(world, runs):
    """1 x 4, 2 x 2 and 4 x 1 (processes x accumulation), normalised by the learnt tokens of all of them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(gradient_run(world, runs, 1))
    torchrun(4, STAGE / "train.py", *gradient_run(world, runs, 4))
    board = EventAccumulator(str(runs / "gradient4/tb_logs"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1]
    states = {}
    for processes in (1, 2, 4):
        path = runs / f"gradient{processes}/step1/global_step1/optimizer.pt"
        state = torch.load(path, weights_only=True)["state"]
        states[processes] = {key: value["exp_avg"] for key, value in state.items()}
    assert all(gradient.abs().max() > 0 for gradient in states[1].values())
    for processes in (2, 4):
        assert curve(runs / f"gradient{processes}") == [pytest.approx(p, rel=1e-5) for p in curve(runs / "gradient1")]
        for key, gradient in states[1].items():
            torch.testing.assert_close(states[processes][key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_shards_train_as_one_process_and_resume_to_the_same_curve(runs, name):
    assert len(curve(runs / name)) == 3
    for mine, one in zip(curve(runs / name), curve(runs / "one"), strict=True):
        assert mine == pytest.approx(one, rel=1e-4)
    one = weights(runs / "one/hf")
    for key, tensor in weights(runs / f"{name}/hf").items():
        torch.testing.assert_close(tensor, one[key], rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moved", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes_to_the_same_curve(world, runs, name, tmp_path):
    """``moved``: three steps of one process, one of two, two of one; ``fsdp2``: three of two, three of a plain one."""
    if name == "fsdp2":
        up_to_step_3(runs / name, tmp_path / "out")
    else:
        shutil.copytree(runs / name, tmp_path / "out")
        assert [step for step, _ in whole_checkpoints(tmp_path / "out")] == [3, 4]
    assert main(argv(world, tmp_path / "out", "--gradient_accumulation_steps", "2", *RESUME)) == 0
    for mine, one in zip(curve(tmp_path / "out"), curve(runs / "one"), strict=True):
        assert mine == pytest.approx(one, rel=1e-4)
    one = weights(runs / "one/hf")
    for key, tensor in weights(tmp_path / "out/hf").items():
        torch.testing.assert_close(tensor, one[key], rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS_THAT_STOP)
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_go_on_to_the_same_bytes(runs, name):
    stopped, whole = runs / f"{name}_stopped", runs / f"{name}_whole"
    assert [step for step, _ in whole_checkpoints(stopped)] == [4, 6]
    assert curve(stopped) == curve(whole)
    for mine, one in zip(curve(whole), curve(runs / "one"), strict=True):  # bfloat16 beside float32
        assert mine == pytest.approx(one, rel=2e-2)
    assert (stopped / "hf/model.safetensors").read_bytes() == (whole / "hf/model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_shards_are_merged_to_the_model_of_their_step(world, runs, name, tmp_path):
    for step in (3, 6):
        convert_checkpoint_to_hf.main(
            as_flags(
                base_model_dir=world / "base_itemic",
                checkpoint_dir=runs / f"{name}/step{step}",
                output_dir=tmp_path / str(step),
            )
        )
    ids = torch.arange(40)[None]
    with torch.no_grad():
        logits = {path: load_lm(path)(ids).logits for path in (tmp_path / "3", tmp_path / "6", runs / name / "hf")}
        one = load_lm(runs / "one/hf")(ids).logits
    assert torch.equal(logits[tmp_path / "6"], logits[runs / name / "hf"])
    torch.testing.assert_close(logits[tmp_path / "6"], one, rtol=1e-2, atol=1e-2)
    assert not torch.allclose(logits[tmp_path / "3"], one, rtol=1e-2, atol=1e-2)
    assert SidSpec.load(tmp_path / "6") == SidSpec.load(world / "base_itemic")


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_stage_1_in_shards_moves_itemic_rows_and_leaves_the_rest_bit_identical(world, runs, name):
    for mine, one in zip(curve(runs / f"{name}_stage1"), curve(runs / "one_stage1"), strict=True):
        assert mine == pytest.approx(one, rel=1e-4)
    first, last = SidSpec.load(world / "untied_itemic").id_range
    before, after = weights(world / "untied_itemic"), weights(runs / f"{name}_stage1/hf")
    for key, old in before.items():
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(old[:first], after[key][:first])
            assert torch.equal(old[last + 1 :], after[key][last + 1 :])
            assert (old[first : last + 1] != after[key][first : last + 1]).any(1).all()
        else:
            assert torch.equal(old, after[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_shard_that_is_missing_is_one_line(world, runs, name, tmp_path):
    shutil.copytree(runs / f"{name}/step6", tmp_path / "step6")
    shards = list(tmp_path.rglob("*.distcp")) or list(tmp_path.rglob("*optim_states.pt"))
    shards[0].unlink()
    with pytest.raises(InputError, match="shard that is missing or damaged"):
        convert_checkpoint_to_hf.main(
            ["--base_model_dir", str(world / "base_itemic"), "--checkpoint_dir", str(tmp_path / "step6")]
        )


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "is not a JSON object"),
        ({}, "zero_optimization.stage is None"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage is 4"),
        ({"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 2}}, "has the section optimizer"),
        ({"gradient_clipping": 1.0, "zero_optimization": {"stage": 2}}, "sets gradient_clipping to 1.0"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "sets bf16 to True"),
    ],
)
def test_a_deepspeed_config_that_contradicts_the_flags_is_refused(tmp_path, value, says):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=says):
        choose(str(path), None, 2)


def test_a_wrong_fsdp_config_is_refused(tmp_path):
    path, example = tmp_path / "fsdp.json", STAGE / "examples/fsdp2.json"
    with pytest.raises(InputError, match="there is one process"):
        choose(None, str(example), 1)
    with pytest.raises(InputError, match="choose one"):
        choose(str(path), str(example), 2)
    assert choose(None, str(example), 2) == Fsdp()
    for value, says in (
        ({"shard": True}, "unknown key shard"),
        ({"cpu_offload": 1}, "cpu_offload is 1"),
        ({"reduce_dtype": "float8"}, "reduce_dtype is 'float8'"),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=says):
            choose(None, str(path), 2)


def test_deepspeed_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="deepspeed is not installed; pip install deepspeed, or --fsdp"):
        choose(str(STAGE / "examples/zero2.json"), None, 2)


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        ((None, 2, 1), (None, 1, 2), None),
        (("fsdp2", 2, 1), (None, 1, 2), None),
        (("fsdp2", 4, 1), ("fsdp2", 2, 2), None),
        (("zero2", 2, 1), ("zero2", 2, 1), None),
        (
            (None, 2, 1),
            (None, 1, 1),
            "2 processes x 1 rows a step, now 1 x 1; --gradient_accumulation_steps 2;",
        ),
        ((None, 4, 1), (None, 3, 1), "now 3 x 1; as many processes, or another number that divides 4; or begin from"),
        (
            ("zero2", 2, 1),
            ("zero2", 1, 2),
            "ZeRO's shards of 2 processes, .*; resume with as many, or begin",
        ),
        ((None, 1, 1), ("fsdp2", 1, 1), "another sharding"),
    ],
)
def test_a_checkpoint_goes_on_with_other_processes_where_the_rows_of_a_step_stay(tmp_path, before, now, says):
    names = ("sharding", "world_size", "gradient_accumulation_steps")
    run, other = (dict(zip(names, values, strict=True)) for values in (before, now))
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match=says) if says else contextlib.nullcontext():
        check_same_run(tmp_path, other)


def test_a_checkpoint_of_another_number_of_rows_is_refused(world, tmp_path, monkeypatch):
    main([*argv(world, tmp_path / "out"), "--num_training_steps", "3"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("pretrain.train.run_processes", Processes)  # nobody else is there to be asked
    with pytest.raises(InputError, match="a run of 1 processes x 1 rows a step, now 2 x 1"):
        main([*argv(world, tmp_path / "out"), "--num_training_steps", "3", *RESUME])


def test_stage_1_shards_leave_out_what_is_frozen_so_their_weights_alone_are_no_beginning(world, tmp_path):
    flags = ["--freeze_llm", "--deepspeed", "zero2.json", "--resume_from", "somewhere"]
    with pytest.raises(InputError, match="convert that checkpoint"):
        main([*argv(world, tmp_path / "out"), *flags])


def test_no_module_of_the_stage_hides_one_of_pythons():
    """``python train.py`` puts this folder first on the path: a statistics.py broke torch.compile and DeepSpeed."""
    hidden = {path.stem for path in STAGE.glob("*.py")} & (sys.stdlib_module_names | {"torch", "numpy"})
    assert not hidden - {"__init__"}


def test_the_model_is_ready_for_shards(world):
    """What ZeRO-3 and FSDP2 go by: a tied head is one parameter, and stage 1 trains parameters of its own."""
    tied, untied = (PackedLM(load_lm(world / name), (318, 331)) for name in ("base_itemic", "untied_itemic"))
    names = [[n for n, p in model.named_parameters() if p.requires_grad] for model in (tied, untied)]
    assert names == [["itemic_in"], ["itemic_in", "itemic_out"]]
    assert "lm.lm_head.weight" not in dict(tied.named_parameters())
