"""Packed rows are exact: every sample gives the loss that it gives alone, and no sample sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain.attention import packed_sdpa, plan_groups
from pretrain.dataset import collate
from pretrain.model import PackedLM, load_lm


def packed_row(samples: list[torch.Tensor]) -> dict:
    ids = torch.cat(samples).numpy()
    borders = np.cumsum([0, *map(len, samples)])
    positions = np.concatenate([np.arange(len(s)) for s in samples])
    labels = np.where(positions > 0, ids, -100)
    return collate(
        [
            {
                "input_ids": ids,
                "position_ids": positions,
                "labels": labels,
                "cu_seq_lens": borders.astype(np.int32),
            }
        ]
    )


@pytest.fixture
def samples():
    torch.manual_seed(0)
    return [torch.randint(0, 300, (length,)) for length in (5, 17, 2, 9, 16)]


def test_packed_loss_and_gradients_equal_those_of_each_sample_alone(world, samples):
    plain = load_lm(world / "base_itemic")
    losses, total = [], 0
    for sample in samples:
        logits = plain(sample[None]).logits[0, :-1]
        losses.append(F.cross_entropy(logits, sample[1:], reduction="none"))
        total = total + losses[-1].sum()
    total.backward()
    packed = PackedLM(load_lm(world / "base_itemic"), loss_chunk=8)
    out = packed(**packed_row(samples))
    out["loss_sum"].backward()
    torch.testing.assert_close(out["losses"], torch.cat(losses), rtol=1e-4, atol=1e-4)
    for (name, a), b in zip(plain.named_parameters(), packed.lm.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_a_sample_never_sees_another(world, samples):
    model = PackedLM(load_lm(world / "base_itemic"))
    with torch.no_grad():
        before = model(**packed_row(samples))["losses"]
        samples[1] = (samples[1] + 7) % 300
        after = model(**packed_row(samples))["losses"]
    ends = np.cumsum([len(s) - 1 for s in samples])
    same = torch.isclose(before, after, atol=1e-5)
    assert same[: ends[0]].all() and same[ends[1] :].all()
    assert not same[ends[0] : ends[1]].all()


def test_the_groups_hold_every_token_once_and_little_padding():
    rng = np.random.default_rng(0)
    borders = np.cumsum([0, *rng.integers(1, 200, 50)]).tolist()
    groups = plan_groups(borders)
    assert torch.cat([g.target for g in groups]).sort().values.tolist() == list(range(borders[-1]))
    assert sum(g.gather.numel() for g in groups) < 1.4 * borders[-1]
    assert len(groups) < 15


def test_attention_without_borders_is_refused():
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="borders"):
        packed_sdpa(torch.nn.Module(), q, q, q, None)
