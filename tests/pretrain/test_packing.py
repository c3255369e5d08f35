"""Packed rows are exact: every sample gives the loss that it gives alone, and no sample sees another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pretrain import attention
from pretrain.attention import packed_sdpa, packed_varlen, plan_groups
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


def kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    """What torch.nn.attention.varlen.varlen_attn promises for causal attention, sample by sample."""
    assert window_size == (-1, 0) and query.shape == key.shape == value.shape
    assert query.dtype == key.dtype == value.dtype and max_q == max_k == int(cu_seq_q.diff().max())
    pieces = []
    for begin, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (t[begin:end].transpose(0, 1) for t in (query, key, value))
        pieces.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


def grouped_kernel(query, key, value, *borders, scale=None, window_size=(-1, -1), enable_gqa=False):
    """As `kernel`, for a torch whose kernel takes grouped heads."""
    assert enable_gqa and key.shape[1] < query.shape[1]
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    return kernel(query, key, value, *borders, scale=scale, window_size=window_size)


@pytest.mark.parametrize("of_torch", [kernel, grouped_kernel])
def test_torchs_kernel_is_asked_for_what_the_groups_give(of_torch, monkeypatch):
    monkeypatch.setattr(attention, "_varlen", lambda: (of_torch, of_torch is grouped_kernel))
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 30, 8, dtype=torch.bfloat16) for heads in (4, 2, 2))
    borders = torch.tensor([0, 5, 6, 22, 30], dtype=torch.int32)
    given = {"scaling": 0.3, "cu_seq_lens_q": borders}
    expected, _ = packed_sdpa(torch.nn.Module(), query, key, value, None, **given)
    # Norms with float32 weights give queries and keys in float32.
    found, _ = packed_varlen(torch.nn.Module(), query.float(), key.float(), value, None, **given, max_length_q=16)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    single = [tensor.float() for tensor in (query, key, value)]
    monkeypatch.setattr(attention, "_varlen", None)  # float32 does not ask the kernel
    found, _ = packed_varlen(torch.nn.Module(), *single, None, **given)
    torch.testing.assert_close(found, expected.float(), rtol=2e-2, atol=2e-2)
    with pytest.raises(ValueError, match="no attention dropout"):
        packed_varlen(torch.nn.Module(), query, key, value, None, dropout=0.1, **given)
    with pytest.raises(ValueError, match="borders"):
        packed_varlen(torch.nn.Module(), query, key, value, None)


@pytest.mark.gpu
def test_on_a_gpu_both_attentions_give_the_same_losses_and_gradients(world, samples):
    found = {}
    row = {name: t.cuda() if torch.is_tensor(t) else t for name, t in packed_row(samples).items()}
    for name in ("packed_sdpa", "packed_varlen"):
        model = PackedLM(load_lm(world / "base_itemic"), attn=name, half=True).cuda()
        model.halve()
        out = model(**row)
        out["loss_sum"].backward()
        found[name] = out["losses"].detach(), model.lm.get_input_embeddings().weight.grad
    torch.testing.assert_close(*(losses for losses, _ in found.values()), rtol=2e-2, atol=5e-2)
    one, other = (gradient.flatten() for _, gradient in found.values())
    assert F.cosine_similarity(one, other, dim=0) > 0.999
