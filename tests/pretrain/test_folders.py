"""What a training may remove: its own, when the new stands; and no two trainings in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from onerec.errors import InputError
from onerec.folders import locked
from pretrain.checkpoint import RUN, checkpoint_dir, keep_newest, whole_checkpoints
from pretrain.reports import LOG, trim_log
from pretrain.train import check_ours, clear_output, main


def checkpoint(output: Path, step: int, whole: bool = True) -> None:
    folder = checkpoint_dir(output, step)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").touch()
    if whole:
        (folder / RUN).write_text("{}")


def finished(output: Path, *steps: int) -> Path:
    (output / "hf").mkdir(parents=True)
    (output / "tb_logs").mkdir()
    (output / LOG).write_text("")
    (output / "manifest.json").write_text(json.dumps({"stage": "pretrain"}))
    for step in steps:
        checkpoint(output, step)
    return output


def test_a_finished_model_whose_checkpoints_are_gone_is_not_begun_anew_unasked(tmp_path):
    output = finished(tmp_path / "out")
    with pytest.raises(InputError, match="whose checkpoints are gone; give another --output_dir, or start"):
        check_ours(output, may_replace=False)
    check_ours(output, may_replace=True)
    clear_output(output, goes_on=False)
    assert sorted(os.listdir(output)) == ["hf", "manifest.json", LOG], "the model stands until the new one does"


@pytest.mark.parametrize("name", ["hf", "tb_logs"])
@pytest.mark.parametrize("beside", [{}, {"manifest.json": "[]"}, {"manifest.json": '{"stage": "other"}'}])
def test_a_folder_that_no_training_made_is_not_replaced(tmp_path, name, beside):
    (tmp_path / name).mkdir()
    for file, text in beside.items():
        (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=f"{name}: was not made by a training; give another --output_dir"):
        check_ours(tmp_path, may_replace=True)


def test_a_run_that_begins_anew_removes_its_own_checkpoints_alone(tmp_path):
    output = finished(tmp_path / "out", 2, 4)
    checkpoint(output, 6, whole=False)  # of another program, or half of one
    (output / "notes").mkdir()
    halves = (".step8.tmp", ".step3.tmp-0a1b2c3d-17-99-1")  # the second: going when another node died
    for name in halves:
        (output / name / "global_step").mkdir(parents=True)
    clear_output(output, goes_on=True)
    assert {"step2", "step4", "tb_logs"} < set(os.listdir(output)) and not set(halves) & set(os.listdir(output))
    clear_output(output, goes_on=False)
    assert sorted(os.listdir(output)) == ["hf", "manifest.json", "notes", "step6", LOG]


def test_what_a_run_writes_that_went_on_from_an_older_checkpoint_stays(tmp_path):
    for step in (1000, 1500, 2000):
        checkpoint(tmp_path, step)
    for step in (600, 700, 800):
        checkpoint(tmp_path, step)
        keep_newest(tmp_path, 2, step)
    assert [step for step, _ in whole_checkpoints(tmp_path)] == [700, 800, 1000, 1500, 2000]
    keep_newest(tmp_path, 2, 1500)
    assert [step for step, _ in whole_checkpoints(tmp_path)] == [1000, 1500, 2000]


@pytest.mark.parametrize("at", range(1, 6))
def test_a_kill_while_an_old_checkpoint_goes_leaves_no_half_of_it(tmp_path, monkeypatch, at):
    for step in (1, 2):
        checkpoint(tmp_path, step)

    class Killed(BaseException):
        pass

    calls = []

    def killed(before):
        def call(*arguments, **more):
            calls.append(arguments)
            if len(calls) == at:
                raise Killed
            return before(*arguments, **more)

        return call

    for name in ("rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, killed(getattr(os, name)))
    with pytest.raises(Killed):
        keep_newest(tmp_path, 1, 2)
    monkeypatch.undo()
    assert [step for step, _ in whole_checkpoints(tmp_path)] == ([1, 2] if at < 3 else [2])
    assert (tmp_path / "step1").exists() == (at < 3)


def test_a_kill_while_the_log_is_trimmed_leaves_the_curve(tmp_path, monkeypatch):
    lines = [json.dumps({"step": step}) + "\n" for step in range(1, 5)]
    (tmp_path / LOG).write_text("".join(lines))

    def full(self, *args, **kwargs):
        open(self, "w").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="no space left"):
        trim_log(tmp_path, 2)
    assert (tmp_path / LOG).read_text() == "".join(lines)
    monkeypatch.undo()
    trim_log(tmp_path, 2)
    assert (tmp_path / LOG).read_text() == "".join(lines[:2]) and os.listdir(tmp_path) == [LOG]


def test_a_second_training_in_the_same_folder_is_refused(world, tmp_path, monkeypatch):
    flags = ["--model_dir", str(world / "base_itemic"), "--dataset_config", str(world / "config.json")]
    with locked(tmp_path / "out"), pytest.raises(InputError, match="another run is at work in it; wait"):
        main([*flags, "--output_dir", str(tmp_path / "x" / ".." / "out")])
    # The other processes of one run come in; they end at the next fault, a model that is none.
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "out"), pytest.raises(InputError, match="is not a checkpoint folder"):
        main(["--model_dir", str(tmp_path), *flags[2:], "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("script", ["make_tiny_qwen3", "expand_vocab", "convert_checkpoint_to_hf"])
def test_a_foreign_folder_is_refused_before_the_work(world, tmp_path, script):
    import importlib

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    checkpoint(tmp_path, 1)
    base, out = str(world / "base"), ["--output_dir", str(tmp_path / "out")]
    flags = {
        "make_tiny_qwen3": ["--corpus", str(world / "general"), *out],
        "expand_vocab": ["--hf_model_dir", base, "--output_model_dir", out[1], "--sid_spec", str(world)],
        "convert_checkpoint_to_hf": ["--base_model_dir", base, "--checkpoint_dir", str(tmp_path), *out],
    }[script]
    with pytest.raises(InputError, match=r"holds what this command did not make \(thesis.txt\)"):
        importlib.import_module(f"pretrain.{script}").main(flags)
    assert os.listdir(tmp_path / "out") == ["thesis.txt"]
