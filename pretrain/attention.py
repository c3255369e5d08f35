"""Padding-free attention over packed sequences, one contract on every device.

A packed batch is one row of tokens [1, T] with the sample borders as ``cu_seq_lens_q`` / ``cu_seq_lens_k`` (int32
[n_samples + 1]) and ``max_length_q`` / ``max_length_k``: the `FlashAttentionKwargs` of transformers. Three attentions
take them: ``flash_attention_2`` on a GPU with flash-attn; ``packed_varlen``, PyTorch's own kernel of that kind
(`torch.nn.attention.varlen`: a GPU, half precision, no attention dropout); and everywhere else ``packed_sdpa``,
PyTorch's causal SDPA over groups of samples of similar length, which is exact and never builds the [T, T] mask of a
packed row.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from onerec.errors import InputError

PACKED_SDPA = "packed_sdpa"
PACKED_VARLEN = "packed_varlen"
FLASH = "flash_attention_2"
# A group may hold at most this share of padding: below it, one larger call costs less than two smaller ones.
_PADDING = 0.25


@dataclasses.dataclass(frozen=True)
class Group:
    """Samples of similar length that one SDPA call handles, right-padded to ``length``.

    ``gather`` int64 [n, length] are positions in the packed row (padding points at the sample's first token: under the
    causal mask no real token sees it). ``source`` and ``target`` int64 [tokens]: which cell of the group's output goes
    to which position.
    """

    gather: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Plan:
    """The groups of a row. `torch.compile` looks into lists and compiles anew for every length, not into this."""

    groups: list[Group]


def plan_groups(cu_seq_lens: Sequence[int], device: torch.device | str = "cpu") -> list[Group]:
    """Group the samples of a packed row by length; ``cu_seq_lens`` are their borders, beginning with 0."""
    # One call a sample would leave a GPU idle between short samples, one call for all would compute mostly padding.
    # Sorted by length, samples share a call as long as it stays three quarters full.
    starts = torch.tensor(cu_seq_lens[:-1], dtype=torch.int64)
    lengths = torch.tensor(cu_seq_lens[1:], dtype=torch.int64) - starts
    order = torch.argsort(lengths, descending=True, stable=True)
    order = order[lengths[order] > 0]
    groups: list[Group] = []
    first = 0
    while first < len(order):
        tokens = longest = int(lengths[order[first]])
        last = first + 1
        while last < len(order):
            longer = tokens + int(lengths[order[last]])
            if longer < (1 - _PADDING) * longest * (last + 1 - first):
                break
            tokens, last = longer, last + 1
        rows = order[first:last]
        columns = torch.arange(longest)
        real = columns < lengths[rows, None]
        gather = starts[rows, None] + torch.where(real, columns, 0)
        source = real.flatten().nonzero().flatten()
        groups.append(Group(gather.to(device), source.to(device), gather.flatten()[source].to(device)))
        first = last
    return groups


def _borders(query: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """The borders of the samples; ValueError where a batch is no packed row."""
    borders = given.get("cu_seq_lens_q")
    if borders is None or query.shape[0] != 1:
        raise ValueError("attention needs one packed row and cu_seq_lens_q, the borders of its samples")
    return borders


@torch.compiler.disable  # the groups differ from row to row; what stands around them is compiled
def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside every sample of a packed row.

    query: [1, heads, T, D]; key, value: [1, kv_heads, T, D]. Returns ([1, T, heads, D], None).
    Raises ValueError without ``cu_seq_lens_q``: without the borders samples would see each other.
    """
    plan = kwargs.get("packed_plan") or Plan(plan_groups(_borders(query, kwargs).tolist(), query.device))
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    pieces = []
    for group in plan.groups:
        q, k, v = (tensor[group.gather].transpose(1, 2) for tensor in (query, key, value))
        grouped = {"is_causal": True, "enable_gqa": q.shape[1] != k.shape[1]}
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling, **grouped)
        pieces.append(out.transpose(1, 2).flatten(0, 1)[group.source])
    target = torch.cat([group.target for group in plan.groups])
    inverse = torch.empty_like(target)
    inverse[target] = torch.arange(len(target), device=target.device)
    return torch.cat(pieces)[inverse][None], None


@functools.cache
def _varlen() -> tuple[Any, bool] | None:
    """PyTorch's attention over packed rows and whether it takes grouped heads as they are; None before torch 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in parameters) if "window_size" in parameters else None


@torch.compiler.disable  # lengths differ from row to row, as above
def packed_varlen(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As `packed_sdpa`, by one call of PyTorch's kernel for packed rows (a GPU; float32 goes to `packed_sdpa`).

    Raises ValueError without ``cu_seq_lens_q``, and where ``dropout`` is not 0, which the kernel does not have.
    """
    borders = _borders(query, kwargs)
    if dropout:
        raise ValueError("packed_varlen has no attention dropout; packed_sdpa has")
    if value.dtype == torch.float32:  # which the kernel does not have
        return packed_sdpa(module, query, key, value, attention_mask, scaling, **kwargs)
    attend, takes_groups = _varlen()
    # Norms with float32 weights leave float32 behind; the values come from a matrix product, in half.
    query, key, value = (tensor[0].transpose(0, 1).to(value.dtype).contiguous() for tensor in (query, key, value))
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and not takes_groups:
        key, value = (tensor.repeat_interleave(shared, dim=1) for tensor in (key, value))
    more = {"enable_gqa": True} if shared > 1 and takes_groups else {}
    longest = kwargs.get("max_length_q") or int(borders.diff().max())
    out = attend(query, key, value, borders, borders, longest, longest, scale=scaling, window_size=(-1, 0), **more)
    return out[None], None


def register(choice: str = "auto", half: bool = True, dropout: float = 0.0) -> str:
    """Register this module's attentions and return the name of the one to use; ``auto`` is this machine's best.

    half: whether the layers compute in bfloat16 or float16; dropout: of the attention probabilities.
    Raises `InputError` where the one asked for cannot run.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED_SDPA, packed_sdpa)
    AttentionInterface.register(PACKED_VARLEN, packed_varlen)
    gpu = torch.cuda.is_available()
    flash = gpu and importlib.util.find_spec("flash_attn") is not None
    if choice == "auto" and flash and half:
        return FLASH
    needs = "a GPU and flash-attn" if choice == FLASH and not flash else ""
    if choice in ("auto", PACKED_VARLEN):  # its kernels begin with Ampere
        if gpu and half and not dropout and _varlen() and torch.cuda.get_device_capability() >= (8, 0):
            return PACKED_VARLEN
        needs = "a GPU (Ampere or later), torch 2.11, half precision and no attention dropout"
    if needs and choice != "auto":
        raise InputError("--attn_implementation", f"{choice} needs {needs}", f"{PACKED_SDPA}, or auto")
    return PACKED_SDPA if choice == "auto" else choice
