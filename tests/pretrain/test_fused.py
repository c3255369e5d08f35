"""Liger's kernels are taken where they give the plain layers' numbers; no GPU is needed to see how that is decided."""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from transformers.models.qwen3 import modeling_qwen3

from pretrain import fused
from pretrain.model import load_lm


class Gpu:
    """A CPU under another name, so that the check runs."""

    type = "cuda"


def package(monkeypatch, change: float, broken: bool = False) -> list:
    """A stand-in for liger_kernel whose rotary embedding is the plain one times ``1 + change``."""
    applied, plain = [], modeling_qwen3.apply_rotary_pos_emb

    def rotary(*args, **kwargs):
        return tuple((1 + change) * tensor for tensor in plain(*args, **kwargs))

    def apply(model, **parts):
        applied.append((model, parts))
        modeling_qwen3.apply_rotary_pos_emb = rotary
        if broken:
            raise RuntimeError("no kernel for this card")

    module = types.SimpleNamespace(apply_liger_kernel_to_qwen3=apply)
    monkeypatch.setattr(modeling_qwen3, "apply_rotary_pos_emb", plain)  # put back at the end
    parent = types.ModuleType("liger_kernel")
    parent.__spec__ = ModuleSpec("liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel", parent)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    original = fused.one_layer
    monkeypatch.setattr(fused, "one_layer", lambda lm, device: original(lm, torch.device("cpu")))
    return applied


def test_kernels_that_give_the_same_are_taken(world, monkeypatch):
    applied, lm = package(monkeypatch, 0.0), load_lm(world / "base_itemic")
    assert fused.fuse(lm, Gpu) == "Liger"
    assert applied[-1][0] is lm and len(applied) == 2
    assert applied[-1][1] == {
        "rms_norm": True,
        "rope": True,
        "swiglu": True,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }


@pytest.mark.parametrize(("change", "broken", "says"), [(0.5, False, "give another"), (0.0, True, "no kernel for")])
def test_kernels_that_give_something_else_or_fail_are_not(world, monkeypatch, caplog, change, broken, says):
    plain = modeling_qwen3.apply_rotary_pos_emb
    applied, lm = package(monkeypatch, change, broken), load_lm(world / "base_itemic")
    assert fused.fuse(lm, Gpu) == "plain"
    assert says in caplog.text and not any(model is lm for model, _ in applied)
    assert modeling_qwen3.apply_rotary_pos_emb is plain, "the model's own is back"


def test_a_cpu_and_a_machine_without_the_package_stay_plain(world):
    lm = load_lm(world / "base_itemic")
    assert fused.fuse(lm, torch.device("cpu")) == "plain"
    assert fused.fuse(lm, Gpu) == "plain"
