"""Runs of the trainer: stage 1 moves itemic rows alone, a killed run resumes to the same numbers, outputs load."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from onerec.cli import Stopped
from onerec.errors import InputError
from onerec.keeper import STOPPED
from onerec.sid import SidSpec
from pretrain import convert_checkpoint_to_hf, trainer
from pretrain.checkpoint import whole_checkpoints
from pretrain.model import PackedLM, load_lm
from pretrain.train import LOADERS, main
from pretrain.trainer import LOG, PackedTrainer, lr_factor, weight_decay_groups
from tests.arguments import as_flags
from tests.clusters import free_port, started, wait_until


def argv(world: Path, output: Path, *extra: str, model: str = "base_itemic") -> list[str]:
    flags = {
        "--model_dir": world / model,
        "--dataset_config": world / "config.json",
        "--output_dir": output,
        "--learning_rate": 5e-3,
        "--num_training_steps": 6,
        "--num_warmup_steps": 1,
        "--logging_per_step": 2,
        "--save_checkpoint_per_step": 3,
    }
    return [str(item) for pair in flags.items() for item in pair] + list(extra)


class Killed(Exception):
    """Stands for the end of a process."""


@contextlib.contextmanager
def killed(monkeypatch, method="training_step", at=5, die=None):
    """A training within it dies in a method of `PackedTrainer` after ``at`` steps, behind what ``die`` does."""
    original = getattr(PackedTrainer, method)

    def run(self, *args, **kwargs):
        if self.state.global_step != at:
            return original(self, *args, **kwargs)
        if die is not None:
            die(self, *args, **kwargs)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(PackedTrainer, method, run)
        yield


def curve(output: Path) -> list[tuple]:
    keys = ("step", "loss", "itemic_loss", "text_loss", "grad_norm", "learning_rate", "tokens")
    return [tuple(json.loads(line)[key] for key in keys) for line in (output / LOG).read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_lm(folder).state_dict())


@pytest.fixture(scope="module")
def full_run(world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "out"
    main(argv(world, output))
    return output


def test_a_run_learns_and_leaves_a_model_that_loads(world, full_run):
    points = curve(full_run)
    assert [point[0] for point in points] == [2, 4, 6]
    assert points[-1][1] < points[0][1]
    assert all(point[2] is not None and point[3] is not None for point in points)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert len(AutoTokenizer.from_pretrained(full_run / "hf")) == len(
        AutoTokenizer.from_pretrained(world / "base_itemic")
    )
    assert AutoModelForCausalLM.from_pretrained(full_run / "hf").config.tie_word_embeddings
    assert SidSpec.load(full_run / "hf") == SidSpec.load(world / "base_itemic")
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (full_run / "hf" / file).read_bytes() == (world / "base_itemic" / file).read_bytes()
    assert (full_run / "tb_logs").is_dir() and json.loads((full_run / "manifest.json").read_text())["steps"] == 6


def test_the_same_seed_gives_the_same_bytes(world, full_run, tmp_path):
    main(argv(world, tmp_path / "again"))
    assert curve(tmp_path / "again") == curve(full_run)
    assert (tmp_path / "again/hf/model.safetensors").read_bytes() == (full_run / "hf/model.safetensors").read_bytes()


@pytest.mark.parametrize("kill", ["during a step", "during a copy", "during a write"])
def test_a_killed_run_resumes_to_the_same_curve(world, full_run, tmp_path, monkeypatch, kill):
    output = tmp_path / "killed"

    def half(state, path, **more):
        path.write_bytes(b"half of them")
        if path.parent.name == "global_step6":
            raise Killed
        save_file(state, path, **more)

    method, at = ("training_step", 5) if kill == "during a step" else ("_copy_whole", 6)
    with killed(monkeypatch, method, at) if kill != "during a write" else pytest.raises(Killed):
        if kill == "during a write":
            monkeypatch.setattr("pretrain.trainer.save_file", half)
        main(argv(world, output))
    monkeypatch.undo()
    assert not list(output.glob(".step*"))
    assert [step for step, _ in whole_checkpoints(output)] == [3] and not (output / "hf").exists()
    with pytest.raises(InputError, match="earlier run"):
        main(argv(world, output))
    with pytest.raises(InputError, match="another learning_rate"):
        main([*argv(world, output), *as_flags(learning_rate="1e-3", resume_from="auto"), "--resume_training_state"])
    main([*argv(world, output), "--resume_from", "auto", "--resume_training_state"])
    assert curve(output) == curve(full_run)
    assert (output / "hf/model.safetensors").read_bytes() == (full_run / "hf/model.safetensors").read_bytes()


def test_training_goes_on_while_a_checkpoint_is_written(world, full_run, tmp_path, monkeypatch):
    """The write of step 3 waits for the fifth step to begin; what it holds are the weights of step 3."""
    fifth, seen = threading.Event(), []

    def write(state, path, **more):
        seen.append((path.parent.name, fifth.wait(600), whole_checkpoints(tmp_path / "out")))
        save_file(state, path, **more)

    def step(self, *args, **kwargs):
        if self.state.global_step == 4:
            fifth.set()
        return original(self, *args, **kwargs)

    original, place = PackedTrainer.training_step, trainer.replace_folder
    monkeypatch.setattr("pretrain.trainer.save_file", write)
    monkeypatch.setattr(PackedTrainer, "training_step", step)
    flushed, named = [], []
    monkeypatch.setattr("pretrain.trainer.flush", lambda folder: flushed.append(len(list(folder.rglob("*.*")))))
    monkeypatch.setattr("pretrain.trainer.replace_folder", lambda *paths: named.append(len(flushed)) or place(*paths))
    main(argv(world, tmp_path / "out"))
    assert flushed == [7, 7] and named == [1, 2], "on disk, all of it, before it has its name"
    assert [name for name, _, _ in seen] == ["global_step3", "global_step6"] and seen[0][1:] == (True, [])
    for name in ("model.safetensors", "optimizer.pt"):
        mine, whole = ((run / "step3/global_step3" / name).read_bytes() for run in (tmp_path / "out", full_run))
        assert mine == whole


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_to_the_same_bytes(
    world, full_run, tmp_path, monkeypatch, capsys, sent, status
):
    output, before = tmp_path / "out", (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))

    def step(self, *args, **kwargs):
        if self.state.global_step == 4:
            os.kill(os.getpid(), sent)
        return original(self, *args, **kwargs)

    original = PackedTrainer.training_step
    monkeypatch.setattr(PackedTrainer, "training_step", step)
    assert main(argv(world, output)) == status
    assert "at step 5 of 6, checkpoint written; run the same command again" in capsys.readouterr().out
    assert [step for step, _ in whole_checkpoints(output)] == [3, 5] and not (output / "hf").exists()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert main([*argv(world, output), "--resume_from", "auto", "--resume_training_state"]) == 0
    assert curve(output) == curve(full_run)
    assert (output / "hf/model.safetensors").read_bytes() == (full_run / "hf/model.safetensors").read_bytes()


def test_processes_that_load_change_nothing_and_leave_with_a_run_that_is_stopped(
    world, full_run, tmp_path, monkeypatch
):
    """As beside a GPU; the signal reaches them too, as torchrun and SLURM send it."""
    import transformers

    make, step = transformers.TrainingArguments, PackedTrainer.training_step
    loaders = {"dataloader_num_workers": LOADERS, "dataloader_persistent_workers": True}
    monkeypatch.setattr(transformers, "TrainingArguments", lambda **given: make(**given | loaders))
    seen = []

    def stopped(self, *args, **kwargs):
        loaders = [process.pid for process in multiprocessing.active_children()]
        seen.append(len(loaders))
        if self.state.global_step == 3:
            subprocess.run(["kill", "-TERM", *map(str, [*loaders, os.getpid()])], check=True)
            time.sleep(0.2)  # one that dies of it is noticed
        return step(self, *args, **kwargs)

    monkeypatch.setattr(PackedTrainer, "training_step", stopped)
    assert main(argv(world, tmp_path / "out")) == STOPPED
    gc.collect()
    assert seen == [LOADERS] * 4
    assert wait_until(lambda: not multiprocessing.active_children())
    monkeypatch.setattr(PackedTrainer, "training_step", step)
    main([*argv(world, tmp_path / "out"), "--resume_from", "auto", "--resume_training_state"])
    assert curve(tmp_path / "out") == curve(full_run)
    assert (tmp_path / "out/hf/model.safetensors").read_bytes() == (full_run / "hf/model.safetensors").read_bytes()


def test_one_process_trains_on_one_gpu_of_several(world, tmp_path, monkeypatch):
    import transformers

    make, step, models = transformers.TrainingArguments, PackedTrainer.training_step, set()

    def two_gpus(**given):
        made = make(**given)
        made._n_gpu = 2  # as transformers counts them where torchrun has not started the process
        return made

    def noted(self, model, *args, **kwargs):
        models.add(type(model))
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(transformers, "TrainingArguments", two_gpus)
    monkeypatch.setattr(PackedTrainer, "training_step", noted)
    main(argv(world, tmp_path / "out", "--num_training_steps", "1"))
    assert models == {PackedLM}


def test_a_signal_behind_the_last_step_is_not_lost(world, tmp_path, monkeypatch):
    def finish(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    original = PackedTrainer._finalize_training
    monkeypatch.setattr(PackedTrainer, "_finalize_training", finish)
    flags = [*argv(world, tmp_path / "out"), "--num_training_steps", "1"]
    with pytest.raises(Stopped):
        main(flags)
    monkeypatch.undo()
    assert main([*flags, "--resume_from", "auto", "--resume_training_state"]) == 0
    assert (tmp_path / "out/hf/config.json").is_file()


def test_a_finished_run_resumed_changes_nothing(world, full_run):
    before, log = (full_run / "hf/model.safetensors").read_bytes(), curve(full_run)
    main([*argv(world, full_run), "--resume_from", "auto", "--resume_training_state"])
    assert (full_run / "hf/model.safetensors").read_bytes() == before and curve(full_run) == log


def test_a_finished_run_gives_its_own_model_in_another_folder_too(world, full_run, tmp_path):
    """Checkpoints of a longer run that lie there are not its own."""
    other = tmp_path / "out/step9/global_step9"
    other.mkdir(parents=True)
    (other / "run.json").write_text("{}")
    main([*argv(world, tmp_path / "out"), "--resume_from", str(full_run), "--resume_training_state"])
    assert (tmp_path / "out/hf/model.safetensors").read_bytes() == (full_run / "hf/model.safetensors").read_bytes()
    assert [step for step, _ in whole_checkpoints(tmp_path / "out")] == [9]


@pytest.mark.parametrize("name", ["base", "untied"])
def test_stage_1_moves_itemic_rows_and_nothing_else(world, tmp_path, name):
    model = f"{name}_itemic"
    main([*argv(world, tmp_path / "out", model=model), "--freeze_llm"])
    first, last = SidSpec.load(world / model).id_range
    before, after = weights(world / model), weights(tmp_path / "out/hf")
    for key, old in before.items():
        new = after[key]
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(old[:first], new[:first]) and torch.equal(old[last + 1 :], new[last + 1 :])
            assert (old[first : last + 1] != new[first : last + 1]).any(1).all()
        else:
            assert torch.equal(old, new), key


def test_stage_1_has_no_optimizer_state_for_what_is_frozen(world):
    spec = SidSpec.load(world / "base_itemic")
    model = PackedLM(load_lm(world / "base_itemic"), spec.id_range)
    groups = weight_decay_groups(model, 0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == 14 * 32
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_conversion_gives_the_model_of_that_step(world, full_run):
    step = str(full_run / "step6")
    convert_checkpoint_to_hf.main(["--base_model_dir", str(world / "base_itemic"), "--checkpoint_dir", step])
    converted = full_run / "step6/global_step6/converted"
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(load_lm(converted)(ids).logits, load_lm(full_run / "hf")(ids).logits)
    assert SidSpec.load(converted) == SidSpec.load(world / "base_itemic")
    with pytest.raises(InputError, match="does not fit"):
        convert_checkpoint_to_hf.main(["--base_model_dir", str(world / "untied_itemic"), "--checkpoint_dir", step])
    with pytest.raises(InputError, match="no whole checkpoint"):
        convert_checkpoint_to_hf.main(["--base_model_dir", str(world / "base_itemic"), "--checkpoint_dir", str(world)])


def test_a_loss_that_is_no_number_stops_the_run(world, tmp_path):
    with pytest.raises(InputError, match=r"not a number \(sources in the batch: .*\); lower --learning_rate"):
        main([*argv(world, tmp_path / "out"), "--learning_rate", "1e30", "--clip_range", "0"])
    assert not (tmp_path / "out/hf").exists()


def test_accumulated_rows_weigh_by_their_learnt_tokens(world, tmp_path):
    """Two rows of different size in one step give the gradient of all their learnt tokens together."""
    norms = {}
    for rows, length in ((1, 400), (2, 200)):
        output = tmp_path / str(rows)
        config = json.loads((world / "config.json").read_text()) | {
            "sources": [str(world / "general")],
            "num_epochs": 1,
        }
        (tmp_path / f"{rows}.json").write_text(json.dumps(config | {"max_length": 100000 if rows == 1 else length}))
        samples_flags = ["--dataset_config", str(tmp_path / f"{rows}.json"), "--num_training_steps", "-1"]
        steps = 1
        accumulate = 1 if rows == 1 else 1000  # every row of the epoch in one step
        main(
            [
                *argv(world, output),
                *samples_flags,
                "--gradient_accumulation_steps",
                str(accumulate),
                "--logging_per_step",
                "1",
            ]
        )
        points = curve(output)
        assert len(points) == steps
        norms[rows] = points[0][1], points[0][4]
    assert norms[1] == pytest.approx(norms[2], rel=1e-3)


def test_the_schedule_rises_falls_and_ends_at_the_floor():
    factors = [lr_factor(step, 11, 2, 0.1, "cosine") for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.55) and factors[10] == pytest.approx(0.1)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert lr_factor(6, 11, 2, 0.1, "linear") == pytest.approx(0.55)
    assert lr_factor(10, 11, 2, 0.1, "constant") == 1.0


@pytest.mark.parametrize(
    ("extra", "model", "says"),
    [
        (["--freeze_llm"], "base", "no itemic tokens to train"),
        (
            ["--freeze_llm", "--start_optimize_embedding_index", "99999"],
            "base_itemic",
            "--start_optimize_embedding_index",
        ),
        (["--start_optimize_embedding_index", "3"], "base_itemic", "without --freeze_llm"),
        (["--resume_training_state"], "base_itemic", "without --resume_from"),
        (["--min_lr", "1"], "base_itemic", "above the peak"),
        (["--resume_from", "nowhere"], "base_itemic", "no whole checkpoint"),
        ([], "absent", "is not a checkpoint folder"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_written(world, tmp_path, extra, model, says):
    with pytest.raises(InputError, match=says):
        main([*argv(world, tmp_path / "out", model=model), *extra])
    assert not (tmp_path / "out").exists()


def test_only_the_newest_checkpoints_are_kept(world, tmp_path):
    main(
        [
            *argv(world, tmp_path / "out"),
            *as_flags(save_checkpoint_per_step=1, keep_checkpoints=2, num_training_steps=4),
        ]
    )
    assert [step for step, _ in whole_checkpoints(tmp_path / "out")] == [3, 4]


def test_a_full_disk_leaves_one_line_and_no_half_checkpoint(world, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pretrain.trainer.save_file", full)
    with pytest.raises(InputError, match="step3: no space left on the device"):
        main(argv(world, tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tb_logs", LOG]


def test_a_run_goes_on_from_the_model_that_it_began_from_and_from_no_other(world, tmp_path):
    """A model made again with the same bytes is the same model; one whose itemic rows are others is not."""
    from safetensors.torch import load_file

    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(world / "base_itemic", model)
    flags = argv(world, output, "--resume_from", "auto", "--resume_training_state", model=str(model))
    main([*flags, "--num_training_steps", "2"])
    exported = (output / "hf/model.safetensors").read_bytes()
    again = tmp_path / "again"
    shutil.copytree(model, again)
    (again / "manifest.json").write_text('{"seconds": 1234}')
    shutil.rmtree(model)
    again.rename(model)
    main([*flags, "--num_training_steps", "2"])
    assert (output / "hf/model.safetensors").read_bytes() == exported
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][SidSpec.load(model).first_id + 1] += 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"another model .*; give the model that it began from, or start over"):
        main([*flags, "--num_training_steps", "2"])
    assert (output / "hf/model.safetensors").read_bytes() == exported
    main([*flags, "--num_training_steps", "2", "--overwrite"])
    assert (output / "hf/model.safetensors").read_bytes() != exported


def test_overwrite_starts_over_even_where_the_scripts_would_resume(world, tmp_path):
    main([*argv(world, tmp_path / "out"), "--num_training_steps", "3"])
    resume = ["--resume_from", "auto", "--resume_training_state"]
    main([*argv(world, tmp_path / "out"), *resume, "--overwrite", "--num_training_steps", "2", "--seed", "5"])
    assert [point[0] for point in curve(tmp_path / "out")] == [2]
    assert [step for step, _ in whole_checkpoints(tmp_path / "out")] == [2]


def test_weights_of_another_run_are_a_beginning_without_its_state(world, full_run, tmp_path):
    main([*argv(world, tmp_path / "out"), "--resume_from", str(full_run), "--num_training_steps", "2"])
    points = curve(tmp_path / "out")
    assert [point[0] for point in points] == [2]
    assert points[0][1] < curve(full_run)[0][1]


KILLED_IN_A_SAVE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pretrain import train, trainer

def half(weights, path, **_):
    path.write_bytes(b"half of them")
    if path.parent.name == "global_step6":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(weights, path, **_)

whole, trainer.save_file = trainer.save_file, half
train.main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_process_killed_within_a_save_leaves_the_checkpoint_before(world, full_run, tmp_path):
    root, output = Path(__file__).resolve().parents[2], tmp_path / "out"
    command = [sys.executable, "-c", KILLED_IN_A_SAVE, str(root), *argv(world, output)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(output.glob(".step6.tmp/*/model.safetensors")), "half a checkpoint, under a name of its own"
    assert [step for step, _ in whole_checkpoints(output)] == [3]
    main([*argv(world, output), "--resume_from", "auto", "--resume_training_state"])
    assert curve(output) == curve(full_run)
    assert not list(output.glob(".step*"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_script_that_gets_sigterm_writes_a_checkpoint_and_says_go_on(world, tmp_path, processes):
    """The signal goes to the shell script's process, as SLURM sends it."""
    psutil = pytest.importorskip("psutil")
    output, script = (
        tmp_path / "out",
        Path(__file__).resolve().parents[2] / "pretrain/examples/pretrain_stg2.sh",
    )
    variables = {
        "MODEL_DIR": world / "base_itemic",
        "OUTPUT_DIR": output,
        "DATASET_CONFIG": world / "config.json",
        "NUM_TRAINING_STEPS": 5000,
        "LOGGING_PER_STEP": 1,
        "NPROC": processes,
        "MASTER_PORT": free_port(),
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": 1,
    }
    with started(
        ["bash", str(script)],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as run:
        before = []
        for line in run.stdout:
            before.append(line)
            if "step 2/" in line:
                break
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGTERM)
        after = run.stdout.read()
    assert run.returncode == STOPPED, "".join(before) + after
    step = int(re.search(r"stopped by SIGTERM at step (\d+) of 5000, checkpoint written; run the same", after)[1])
    assert [found for found, _ in whole_checkpoints(output)] == [step]
    assert len(children) >= (2 if processes == "2" else 0)
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not alive
