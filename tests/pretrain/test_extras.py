"""Options that need a package or a device: what each does, and one line where it cannot."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types

import pytest
import torch

from onerec.errors import InputError
from pretrain import attention
from pretrain.extras import apply_liger
from pretrain.model import load_lm
from pretrain.train import main
from pretrain.trainer import LOG, PackedTrainer
from tests.pretrain.test_train import argv, curve


def module(name: str, **members) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(members)
    return made


@pytest.mark.slow
def test_compiled_layers_train_to_the_same_numbers_and_are_compiled_once(world, tmp_path):
    short = ["--num_training_steps", "4"]
    main([*argv(world, tmp_path / "plain"), *short])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    main([*argv(world, tmp_path / "compiled"), *short, "--compile", "--compile_backend", "aot_eager"])
    for mine, plain in zip(curve(tmp_path / "compiled"), curve(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"], "rows of any length and number of samples share a compilation"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--use_liger_kernel"],
            "--use_liger_kernel: liger-kernel is not installed; pip install liger-kernel",
        ),
        (["--report_to", "wandb"], "--report_to: wandb is not installed; pip install wandb"),
        (["--attn_implementation", "flash_attention_2"], "flash-attn is not installed"),
    ],
)
def test_a_package_that_is_not_installed_is_one_line(world, tmp_path, monkeypatch, flags, says):
    monkeypatch.setattr("pretrain.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=says):
        main([*argv(world, tmp_path / "out"), *flags])
    assert not (tmp_path / "out").exists()


def test_ligers_kernels_go_into_the_model_and_its_loss_stays_out(world, monkeypatch):
    calls = []
    fake = module("liger_kernel.transformers", _apply_liger_kernel_to_instance=lambda lm, **k: calls.append((lm, k)))
    monkeypatch.setitem(sys.modules, "liger_kernel", module("liger_kernel", __path__=[]))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", fake)
    lm = load_lm(world / "base")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    apply_liger(lm)
    assert calls == [(lm, {"fused_linear_cross_entropy": False, "cross_entropy": False})]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="there is no GPU"):
        apply_liger(lm)


def test_attention_is_chosen_by_what_is_there(monkeypatch):
    assert attention.register("packed_sdpa") == "packed_sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: object())
    assert attention.register() == attention.register("flash_attention_2") == "flash_attention_2"
    assert attention.register("packed_sdpa") == "packed_sdpa"
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert attention.register() == attention.register("packed_varlen") == "packed_varlen"
    assert attention.register(half=False) == attention.register(dropout=0.1) == "packed_sdpa"
    with pytest.raises(InputError, match="no attention dropout"):
        attention.register("packed_varlen", dropout=0.1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert attention.register() == "packed_sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention.register() == "packed_sdpa"
    with pytest.raises(InputError, match="needs a GPU \\(Ampere"):
        attention.register("packed_varlen")
    with pytest.raises(InputError, match="needs a GPU and flash-attn"):
        attention.register("flash_attention_2")


def test_wandb_and_tensorboard_get_what_the_log_file_gets(world, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen, begun = {}, {}

    class Run:
        def log(self, values, step):
            seen.setdefault(step, {}).update(values)

        def finish(self):
            begun["finished"] = True

    def init(**settings):
        begun.update(settings)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", module("wandb", init=init))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    main([*argv(world, tmp_path / "out"), "--report_to", "wandb", "--eval_sources", str(world / "rec")])
    assert begun["project"] == "mine" and begun["config"]["learning_rate"] == 5e-3 and begun["finished"]
    board = EventAccumulator(str(tmp_path / "out/tb_logs"))
    board.Reload()
    for line in map(json.loads, (tmp_path / "out" / LOG).read_text().splitlines()):
        sent = seen[line["step"]]
        assert sent["train/loss"] == line["loss"] and sent["train/learning_rate"] == line["learning_rate"]
        assert sent["train/loss_by_source/facts"] == line["loss_by_source"]["facts"]
        shown = {event.step: event.value for event in board.Scalars("train/loss")}
        assert shown[line["step"]] == pytest.approx(line["loss"])
    assert "validation/loss" in seen[6]


def test_weights_that_are_no_numbers_do_not_push_out_a_good_checkpoint(world, tmp_path, monkeypatch):
    """A gradient can overflow behind a loss that is a number; the step is then over before a loss shows it."""
    original = PackedTrainer._get_grad_norm

    def overflow(self, model, grad_norm=None):
        if self.state.global_step == 5:
            next(p for p in self.model.parameters() if p.requires_grad).grad.fill_(float("inf"))
        return original(self, model, grad_norm)

    monkeypatch.setattr(PackedTrainer, "_get_grad_norm", overflow)
    said = r"the weights after step 6 are not a number \(sources in the batch: .+\).*last good checkpoint is .*step3"
    with pytest.raises(InputError, match=said):
        main(argv(world, tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").glob("step*")) == ["step3"]
    assert not (tmp_path / "out/hf").exists()


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(world, tmp_path, monkeypatch):
    original = PackedTrainer.compute_loss

    def spoiled(self, *args, **kwargs):
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    monkeypatch.setattr(PackedTrainer, "compute_loss", spoiled)
    with pytest.raises(InputError) as error:
        main(argv(world, tmp_path / "out"))
    line = str(error.value)
    assert "the loss of step 5 is not a number" in line and "step3/global_step3" in line
    assert {"arithmetic", "facts", "video_rec"} & set(line.split("batch: ")[1].split(")")[0].split(", "))
    assert sorted(path.name for path in (tmp_path / "out").glob("step*")) == ["step3"]
