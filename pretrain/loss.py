"""Cross-entropy of a linear head at learnt positions, in chunks.

With a vocabulary of 176,384 the logits of 32,768 tokens take 23 GB in float32. Here they exist a chunk at a time, and
the gradients of hidden states and head are taken while the chunk is there, so that the backward pass only scales them
and nothing is computed twice (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch

# A GPU wants large matrices; on a CPU the logits of a chunk should stay in its cache.
CHUNKS = {"cuda": 4096, "cpu": 128}


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
        for begin in range(0, len(hidden), chunk):
            rows = slice(begin, begin + chunk)
            part, target = hidden[rows], labels[rows, None]
            logits = torch.cat([part @ h.T for h in heads], dim=1) if len(heads) > 1 else part @ heads[0].T
            logits = logits.float()
            learnt, top = logits.gather(1, target), logits.amax(dim=1, keepdim=True)
            # From here on `logits` holds exp(logit - top): softmax times `total`, made in place, because a second
            # tensor of this size would double the peak. The division by `total` is done on the much smaller products
            # below.
            total = logits.sub_(top).exp_().sum(dim=1, keepdim=True)
            losses[rows] = (total.log() + top - learnt).squeeze(1)
            if not want_hidden and not any(want_heads):
                continue
            # d loss / d logits is softmax minus one at the label; times `total`, that is to take `total` off there.
            parts = logits.scatter_add_(1, target, -total).to(part.dtype).split(sizes, dim=1)
            if want_hidden:
                summed = parts[0] @ heads[0]
                for piece, h in zip(parts[1:], heads[1:], strict=True):
                    summed = summed + piece @ h
                grad_hidden[rows] = summed / total
            part = (part / total).to(part.dtype)
            for piece, buffer in zip(parts, grad_heads, strict=True):
                if buffer is None:
                    continue
                if buffer.dtype == piece.dtype == part.dtype and not torch.is_autocast_enabled(piece.device.type):
                    buffer.addmm_(piece.T, part)  # adds in place, without a product of the head's size
                else:
                    buffer += piece.T @ part
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
