"""What of the item engine runs otherwise on a GPU, each beside its plain form: packed attention, fused passes, and beam
steps that are recorded and replayed.

The plain forms are the arithmetic of transformers' Qwen3; the others are equal to them within rounding. Which one runs
is told by the tensors' device.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

# Causal attention of packed queries [T, H, D] to packed keys and values [T, KV, D]; bounds int32 [B + 1] says where
# each row begins, and the last is the longest row's length.
Packed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def packed_attention(like: torch.Tensor) -> Packed | None:
    """Attention without padding for tensors such as ``like``; None where nothing here does it."""
    half = like.dtype in (torch.float16, torch.bfloat16)
    return _packed_kernel() if like.is_cuda and half else None


@functools.cache
def _packed_kernel() -> Packed | None:
    """flash-attn's kernel where it is installed, otherwise torch's, whose options differ between versions."""
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func

        return lambda q, k, v, bounds, longest: flash_attn_varlen_func(
            q, k, v, bounds, bounds, longest, longest, causal=True
        )
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if shares := "enable_gqa" in known:
        options["enable_gqa"] = True

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, longest: int) -> torch.Tensor:
        if not shares:
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)

    return attend


def _fused(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``plain``, on a GPU compiled into one pass over memory where there is Triton to compile it."""
    compiled = functools.cache(lambda: torch.compile(plain, dynamic=True, fullgraph=True))

    @functools.wraps(plain)
    def chosen(x: torch.Tensor, *more: Any) -> torch.Tensor:
        return (compiled() if x.is_cuda and _has_triton() else plain)(x, *more)

    return chosen


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@_fused
def normed(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last axis, in float32 (Zhang and Sennrich, arXiv 1910.07467)."""
    return _normed(x, weight, eps)


@_fused
def normed_and_rotated(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Heads [T, H, D], normed and turned by their positions (rotary embedding, arXiv 2104.09864)."""
    x = _normed(x, weight, eps)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


@_fused
def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SwiGLU (arXiv 2002.05202)."""
    return functional.silu(gate) * up


@_fused
def _sums(logits: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return (logits - shift).exp().sum(-1)


def sum_of_exp(hidden: torch.Tensor, weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Sum over v of exp(hidden · weight[v] − shift), float32 [N]; shift: float32 [N, 1].

    On a GPU the float32 product is read once. On a CPU the shift rides along in it, or is taken off in place.
    """
    if hidden.dtype == torch.float32 and not hidden.is_cuda:
        return torch.addmm(-shift, hidden, weight.T).exp_().sum(-1)
    logits = float32_logits(hidden, weight)
    return _sums(logits, shift) if logits.is_cuda else logits.sub_(shift).exp_().sum(-1)


def float32_logits(hidden: torch.Tensor, weight: torch.Tensor, rows: int = 4096) -> torch.Tensor:
    """``hidden`` [..., H] times the head's rows ``weight`` [V, H]: float32 [..., V], whatever the type of the two.

    A bfloat16 logit has 8 bits: near 20 its steps are 0.125, and candidates tie or change places. The product of two
    bfloat16 numbers is exact in float32, so that nothing is rounded but the sum; on a GPU at the price of the bfloat16
    product. On a CPU ``rows`` of the vocabulary are converted at a time, not the whole head.
    """
    if weight.dtype == torch.float32:
        return hidden @ weight.T
    if weight.is_cuda:
        flat = torch.mm(hidden.flatten(0, -2), weight.T, out_dtype=torch.float32)
        return flat.view(*hidden.shape[:-1], len(weight))
    return torch.cat([hidden.float() @ part.float().T for part in weight.split(rows)], -1)


def record(function: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """What ``function`` does on the GPU ``device`` as a CUDA graph: (its replay, the result, which each replay writes
    anew).
    """
    graph = torch.cuda.CUDAGraph()
    # By itself a stream is the first GPU's, and what runs on another is not recorded: its replay would do nothing.
    stream = torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = function()  # other threads may do what they want
    return graph.replay, result


class Replays:
    """Beam steps of one shape of batch: run when they first come, recorded when they come again, then replayed.

    A step is a function of (depth, own, parents, tokens) that gives (hidden states, own): see `ItemModel.step`. A
    replay reads and writes the memory of its recording, so a step is replayed behind the recorded step before it alone.
    The step is not kept: with the model that it is of in a circle, a GPU's memory would wait for the garbage collector.
    """

    def __init__(self) -> None:
        self.seen: set[tuple[int, ...]] = set()
        self.known: dict[tuple[int, ...], tuple[Any, ...]] = {}

    def __call__(
        self,
        step: Callable[..., tuple[torch.Tensor, list]],
        depth: int,
        own: list,
        parents: torch.Tensor,
        tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, list]:
        """As the step itself, which is the same at every call."""
        key = (depth, *parents.shape, *tokens.shape)
        recorded = [result[1] for _, _, _, result in self.known.values()]
        if key not in self.seen or (depth and not any(own is one for one in recorded)):
            self.seen.add(key)
            return step(depth, own, parents, tokens)
        if key not in self.known or (depth and self.known[key][1] is not own):
            inputs = parents.clone(), tokens.clone()
            replay, result = record(functools.partial(step, depth, own, *inputs), tokens.device)
            self.known[key] = replay, own, inputs, result
        replay, _, inputs, result = self.known[key]
        for held, given in zip(inputs, (parents, tokens), strict=True):
            held.copy_(given)
        replay()
        return result
