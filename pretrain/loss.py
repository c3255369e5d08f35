"""Cross-entropy of a linear head at learnt positions, in chunks.

With a vocabulary of 176,384 the logits of 32,768 tokens take 23 GB in float32. Here they exist a chunk at a time, in
the dtype of the hidden states, and the gradients of hidden states and head are taken while the chunk is there, so that
the backward pass only scales them and nothing is computed twice (the idea of Liger's fused linear cross-entropy, arXiv
2410.10989, section 3.2).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from onerec.errors import reason
from onerec.run import get_logger

# A GPU wants large matrices; on a CPU the logits of a chunk should stay in its cache.
CHUNKS = {"cuda": 4096, "cpu": 128}
BLOCK = 1 << 23  # numbers of bfloat16 logits that stand in float32 at a time: 32 MB
Exponentials = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
log = get_logger("train")


def exponentials_(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses float32 [n] and sums of exponentials float32 [n, 1] of logits [n, V]; target int64 [n, 1].

    Leaves in ``logits`` the gradient of the losses' sum times each row's sum: the division by it is done on the much
    smaller products. float32 logits are worked on in place.
    """
    wide = logits.float()
    learnt, top = wide.gather(1, target), wide.amax(dim=1, keepdim=True)
    total = wide.sub_(top).exp_().sum(dim=1, keepdim=True)
    # d loss / d logits is softmax minus one at the label; times `total`, that is to take `total` off there.
    wide.scatter_add_(1, target, -total)
    if wide is not logits:
        logits.copy_(wide)
    return (total.log() + top - learnt).squeeze(1), total


def in_blocks_(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`exponentials_` of bfloat16 logits, so many rows at a time that their float32 copy stays in a GPU's cache."""
    rows = max(1, BLOCK // logits.shape[1])
    pairs = zip(logits.split(rows), target.split(rows), strict=True)
    losses, totals = zip(*(exponentials_(*pair) for pair in pairs), strict=True)
    return torch.cat(losses), torch.cat(totals)


def fusable_(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`exponentials_`, written so that a compiler reads the logits twice and writes them once, without a copy."""
    wide = logits.float()
    top = wide.amax(dim=1, keepdim=True)
    total = (wide - top).exp().sum(dim=1, keepdim=True)
    learnt = logits.gather(1, target).float()
    columns = torch.arange(logits.shape[1], device=logits.device)
    logits.copy_((wide - top).exp() - torch.where(columns == target, total, 0.0))
    return (total.log() + top - learnt).squeeze(1), total


@functools.cache
def of_half(device: str) -> Exponentials:
    """The function for bfloat16 logits on ``device``: compiled where Triton is, if it gives the plain one's numbers."""
    if device != "cuda" or importlib.util.find_spec("triton") is None:
        return in_blocks_
    return checked(torch.compile(fusable_, dynamic=True), device)


def checked(fused: Exponentials, device: str) -> Exponentials:
    """``fused`` where it runs on ``device`` and gives the numbers of `in_blocks_`, else the latter."""
    generator = torch.Generator(device).manual_seed(0)
    logits = (4 * torch.randn(300, 5000, device=device, generator=generator)).bfloat16()
    target = torch.randint(5000, (300, 1), device=device, generator=generator)
    mine, plain = logits.clone(), logits.clone()
    try:
        found, wanted = fused(mine, target), in_blocks_(plain, target)
        same = all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(found, wanted, strict=True))
        same = same and torch.allclose(mine, plain, rtol=2e-2, atol=1e-6)
    except Exception as error:  # a compiler has many
        log.warning(f"the loss is not compiled: {reason(error)}")
        return in_blocks_
    if not same:
        log.warning("the compiled loss gives other numbers than the plain one, which is used")
    return fused if same else in_blocks_


class _ChunkedLinearCrossEntropy(torch.autograd.Function):
    """See `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, labels: torch.Tensor, chunk: int, *heads: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        want_hidden = ctx.needs_input_grad[0]
        want_heads = ctx.needs_input_grad[3:]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        # The chunks' gradients of the head are added up in float32: in bfloat16 late chunks would be lost against the
        # sum.
        grad_heads = [
            torch.zeros(h.shape, dtype=torch.float32, device=h.device) if wanted else None
            for h, wanted in zip(heads, want_heads, strict=True)
        ]
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        sizes = [len(h) for h in heads]
        buffer = hidden.new_empty(min(chunk, len(hidden)), sum(sizes))  # a chunk's logits, then their gradient
        softmax_ = exponentials_ if hidden.dtype == torch.float32 else of_half(hidden.device.type)
        for begin in range(0, len(hidden), chunk):
            rows = slice(begin, begin + chunk)
            part, target = hidden[rows], labels[rows, None]
            logits = buffer[: len(part)]
            parts = logits.split(sizes, dim=1)
            for piece, h in zip(parts, heads, strict=True):
                torch.mm(part, h.T, out=piece)
            losses[rows], total = softmax_(logits, target)
            if want_hidden:
                summed = parts[0] @ heads[0]
                for piece, h in zip(parts[1:], heads[1:], strict=True):
                    summed = summed + piece @ h
                grad_hidden[rows] = summed / total
            part = (part / total).to(part.dtype)
            for piece, grad in zip(parts, grad_heads, strict=True):
                if grad is None:
                    continue
                if grad.dtype == piece.dtype:
                    grad.addmm_(piece.T, part)  # adds in place, without a product of the head's size
                else:
                    grad += piece.T @ part
        ctx.save_for_backward(grad_hidden, *grad_heads)
        ctx.dtypes = [h.dtype for h in heads]
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, *grad_heads = ctx.saved_tensors
        pairs = zip(grad_heads, ctx.dtypes, strict=True)
        scaled = [None if grad is None else (grad * grad_sum).to(dtype) for grad, dtype in pairs]
        return None if grad_hidden is None else grad_hidden * grad_sum, None, None, *scaled


def linear_cross_entropy(
    hidden: torch.Tensor, labels: torch.Tensor, *heads: torch.Tensor, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of ``hidden @ cat(heads).T`` against ``labels``.

    Args:
        hidden: [N, H]. labels: int64 [N], row numbers of the concatenated heads. chunk: positions whose logits exist at
            a time; None: `CHUNKS`.
        heads: parts of the head's weight [rows, H], in order; one part that needs a gradient does not cost the others
            one.

    Returns (sum of the N losses, differentiable; the N losses float32, for statistics only).
    """
    chunk = chunk or CHUNKS.get(hidden.device.type, CHUNKS["cuda"])
    return _ChunkedLinearCrossEntropy.apply(hidden, labels, chunk, *heads)
