"""Options that need a package or a device: what each does, and one line where it cannot."""

from __future__ import annotations

import json

import pytest
import torch

from onerec.errors import InputError
from onerec.qwen3 import QWEN3
from pretrain import attention
from pretrain.options import parser
from pretrain.sharding import Whole
from pretrain.train import main, recomputation
from pretrain.trainer import LOG, PackedTrainer
from tests.pretrain.test_train import argv, curve


@pytest.mark.slow
def test_compiled_layers_train_to_the_same_numbers_and_are_compiled_once(world, tmp_path, monkeypatch):
    # Inductor would need a compiler of C++ and minutes; what is traced is the same.
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **how: whole(self, backend="aot_eager", **how))
    short = ["--num_training_steps", "4"]
    main([*argv(world, tmp_path / "plain"), *short])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    main([*argv(world, tmp_path / "compiled"), *short, "--compile"])
    for mine, plain in zip(curve(tmp_path / "compiled"), curve(tmp_path / "plain"), strict=True):
        assert mine == pytest.approx(plain, rel=1e-4)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["recompile_limit"], "rows of any length and number of samples share a compilation"


@pytest.mark.parametrize("what", ["attention", "full", "full:1"])
def test_recomputation_changes_no_number(world, tmp_path, monkeypatch, what):
    from torch.utils import checkpoint

    calls, original = [], checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *args, **more: calls.append(1) or original(*args, **more))
    short = ["--num_training_steps", "3", "--logging_per_step", "1", "--dropout", "0.1", "--attention_dropout", "0.1"]
    main([*argv(world, tmp_path / "plain"), *short])
    assert not calls
    flag = {"attention": ["--recompute", what], "full": ["--enable_gradient_checkpointing"]}.get(what, [])
    if not flag:
        monkeypatch.setattr("pretrain.train.recomputation", lambda *_: what)  # as auto chooses
    main([*argv(world, tmp_path / "again"), *short, *flag])
    assert curve(tmp_path / "again") == curve(tmp_path / "plain")
    # Layers and steps; transformers has its own name for that of full layers.
    assert len(calls) == {"attention": 6, "full": 0, "full:1": 3}[what]
    with pytest.raises(InputError, match="it means full: leave one out"):
        main([*argv(world, tmp_path / "no"), "--enable_gradient_checkpointing", "--recompute", "attention"])


def test_auto_recomputes_as_little_as_fits_the_gpu(world, monkeypatch):
    class Gpu:
        total_memory = 1 << 36

    args = parser(None).parse_args(argv(world, world / "out"))
    assert recomputation(args, QWEN3["1.7B"], 8192, True, 1, Whole()) == "none"  # a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Gpu)
    chosen = [recomputation(args, QWEN3["1.7B"], length, True, 1, Whole()) for length in (8192, 12288, 32768)]
    assert chosen == ["none", "attention:23", "full:18"]


def test_a_package_that_is_not_installed_is_one_line(world, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.options.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="flash-attn is not installed"):
        main([*argv(world, tmp_path / "out"), "--attn_implementation", "flash_attention_2"])
    assert not (tmp_path / "out").exists()


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


def test_tensorboard_gets_what_the_log_file_gets(world, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main([*argv(world, tmp_path / "out"), "--eval_sources", str(world / "rec")])
    board = EventAccumulator(str(tmp_path / "out/tb_logs"))
    board.Reload()
    for line in map(json.loads, (tmp_path / "out" / LOG).read_text().splitlines()):
        for name, value in (("loss", line["loss"]), ("loss_by_source/facts", line["loss_by_source"]["facts"])):
            shown = {event.step: event.value for event in board.Scalars(f"train/{name}")}
            assert shown[line["step"]] == pytest.approx(value)
    assert [event.step for event in board.Scalars("validation/loss")] == [3, 6]


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
