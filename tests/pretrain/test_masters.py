"""bfloat16 weights with float32 masters: the same training, no update lost, a checkpoint that holds the masters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onerec.sid import SidSpec
from pretrain import masters
from pretrain.masters import MasterAdamW, halve
from pretrain.model import PackedLM, load_lm
from pretrain.train import main
from tests.pretrain.test_train import argv, curve, killed, weights

HALF = ("--precision", "bf16")
RESUME = ("--resume_from", "auto", "--resume_training_state")
WEIGHTS = "step6/global_step6/model.safetensors"


def test_steps_are_adamws_on_the_masters_whatever_the_blocks(monkeypatch):
    monkeypatch.setattr(masters, "_BLOCK", 20)
    torch.manual_seed(0)
    half = torch.nn.ParameterList([torch.randn(4, 4), torch.randn(7), torch.randn(30), torch.randn(2)])
    full = [torch.nn.Parameter(p.detach().clone()) for p in half]
    optimizer = MasterAdamW([{"params": list(half)}], halve(half), lr=0.1, fused=True)
    plain = torch.optim.AdamW(full, lr=0.1, fused=True)
    for step in range(3):
        for mine, other in zip(half[:-1], full[:-1], strict=True):  # the last one has no gradient
            mine.grad = torch.randn(mine.shape).bfloat16()
            other.grad = mine.grad.float()
        norm = optimizer.clip(1.0) if step else None
        if step:
            torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(full, 1.0))
        optimizer.step()
        plain.step()
        for mine, other in zip(half, full, strict=True):
            assert mine.dtype == torch.bfloat16 and torch.equal(mine, other.bfloat16())
    ours, theirs = optimizer.state_dict()["state"], plain.state_dict()["state"]
    assert ours.keys() == theirs.keys() == {0, 1, 2}
    for key, state in theirs.items():
        for name, value in state.items():
            torch.testing.assert_close(ours[key][name], value)


def test_updates_that_bfloat16_would_lose_add_up():
    weight = torch.nn.ParameterList([torch.ones(8)])
    found = halve(weight)
    optimizer = MasterAdamW([{"params": list(weight)}], found, lr=1e-4, weight_decay=0.0, fused=True)
    for _ in range(100):
        weight[0].grad = torch.ones(8).bfloat16()
        optimizer.step()
    assert found[weight[0]].tolist() == pytest.approx([0.99] * 8, abs=1e-4)
    assert weight[0].tolist() == pytest.approx([0.9883] * 8, abs=1e-4)  # its nearest bfloat16


def test_rotary_frequencies_stay_in_float32(world):
    model = PackedLM(load_lm(world / "base_itemic"), half=True)
    model.halve()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("masters") / "out"
    main(argv(world, output, *HALF))
    return output


def test_a_bfloat16_run_follows_a_float32_run_and_saves_its_masters(world, run, tmp_path):
    main(argv(world, tmp_path / "full", "--precision", "fp32"))
    for mine, full in zip(curve(run), curve(tmp_path / "full"), strict=True):
        assert mine == pytest.approx(full, rel=2e-2)
    saved, exported = load_file(run / WEIGHTS), weights(run / "hf")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in saved.values())
    assert all(torch.equal(tensor, exported[name]) for name, tensor in saved.items())
    assert "| precision | bfloat16 |" in (run / "hf/README.md").read_text()


def test_a_killed_run_resumes_to_the_same_bytes(world, run, tmp_path, monkeypatch):
    with killed(monkeypatch):
        main(argv(world, tmp_path / "out", *HALF))
    main(argv(world, tmp_path / "out", *HALF, *RESUME))
    assert curve(tmp_path / "out") == curve(run)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (run / WEIGHTS).read_bytes()


def test_a_run_begun_in_float32_goes_on_in_bfloat16(world, run, tmp_path):
    """As a run of an earlier version, whose checkpoints are the same."""
    out = tmp_path / "out"
    main(argv(world, out, "--precision", "fp32"))
    (out / "step6/global_step6/run.json").unlink()
    (out / "hf").rename(tmp_path / "hf")
    main(argv(world, out, *HALF, *RESUME))
    assert curve(out)[-1] == pytest.approx(curve(run)[-1], rel=2e-2)


@pytest.mark.parametrize("name", ["base_itemic", "untied_itemic"])
def test_stage_1_leaves_what_is_frozen_bit_identical_though_bfloat16_does_not_hold_it(world, tmp_path, name):
    main(argv(world, tmp_path / "out", *HALF, "--freeze_llm", model=name))
    first, last = SidSpec.load(world / name).id_range
    before, after = weights(world / name), weights(tmp_path / "out/hf")
    for key, old in before.items():
        if key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(old[:first], after[key][:first]) and torch.equal(old[last + 1 :], after[key][last + 1 :])
            assert (old[first : last + 1] != after[key][first : last + 1]).any(1).all()
        else:
            assert torch.equal(old, after[key]), key
    state = torch.load(tmp_path / "out/step6/global_step6/optimizer.pt", weights_only=True)["state"]
    assert {tensor.dtype for kept in state.values() for tensor in kept.values()} == {torch.float32}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["steps"] == 6
