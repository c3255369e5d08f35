"""Dropout: on in training only, by the seed, resumable to the same bytes, unknown to the checkpoint that is written."""

from __future__ import annotations

import json

import pytest
import torch

from onerec.errors import InputError
from pretrain.extras import add_dropout
from pretrain.model import load_lm
from pretrain.train import main
from tests.pretrain.test_train import argv, curve, killed

RATES = ["--dropout", "0.3", "--attention_dropout", "0.2"]


@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3)])
def test_it_changes_training_passes_and_no_others(world, rates):
    plain, dropped, ids = load_lm(world / "base"), load_lm(world / "base"), torch.arange(30)[None]
    add_dropout(dropped, *rates)
    with torch.no_grad():
        wanted = plain.eval()(ids).logits
        assert torch.equal(dropped.eval()(ids).logits, wanted)
        assert torch.equal(plain.train()(ids).logits, wanted)
        first, second = (dropped.train()(ids).logits for _ in range(2))
    assert not torch.equal(first, wanted) and not torch.equal(first, second)


def test_what_is_dropped_is_made_up_for(world):
    """The mean of many draws of the embedded tokens is what there is without dropout."""
    lm = load_lm(world / "base").train()
    ids = torch.arange(20)
    wanted = lm.model.embed_tokens(ids)
    add_dropout(lm, 0.5, 0.0)
    with torch.no_grad():
        draws = torch.stack([lm.model.embed_tokens(ids) for _ in range(400)])
    assert (draws == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.allclose(draws.mean(0), wanted, atol=0.25 * wanted.abs().max().item())


def test_a_run_is_its_seed_resumes_to_the_same_bytes_and_exports_a_plain_model(world, tmp_path, monkeypatch):
    main([*argv(world, tmp_path / "whole"), *RATES])
    main([*argv(world, tmp_path / "none")])
    main([*argv(world, tmp_path / "again"), *RATES])
    whole = (tmp_path / "whole/hf/model.safetensors").read_bytes()
    assert curve(tmp_path / "again") == curve(tmp_path / "whole") != curve(tmp_path / "none")
    assert (tmp_path / "again/hf/model.safetensors").read_bytes() == whole

    with killed(monkeypatch):
        main([*argv(world, tmp_path / "cut"), *RATES])
    resume = ["--resume_from", "auto", "--resume_training_state"]
    with pytest.raises(InputError, match="another attention_dropout"):
        main([*argv(world, tmp_path / "cut"), *resume])
    main([*argv(world, tmp_path / "cut"), *RATES, *resume])
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert (tmp_path / "cut/hf/model.safetensors").read_bytes() == whole

    config = json.loads((tmp_path / "whole/hf/config.json").read_text())
    assert config == json.loads((tmp_path / "none/hf/config.json").read_text())
    assert config["attention_dropout"] == 0.0


@pytest.mark.parametrize("rates", [["--dropout", "1"], ["--attention_dropout", "-0.1"]])
def test_rates_that_are_none_are_refused(world, tmp_path, rates):
    with pytest.raises(InputError, match="from 0"):
        main([*argv(world, tmp_path / "out"), *rates])
    assert not (tmp_path / "out").exists()
