"""bfloat16 weights with float32 masters: layers compute in half precision, the optimizer adds up in float32.

As in mixed-precision training (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1): an update smaller than 2^-9 of
a weight would be lost in bfloat16. A checkpoint holds the masters. ZeRO and FSDP2 keep float32 shards of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

# Numbers whose gradients stand in float32 at a time while the optimizer steps.
_BLOCK = 1 << 26


def halve(model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Put a model's parameters into bfloat16, in place; returns the float32 tensors by their parameters.

    Those that are trained have theirs on the same device; frozen ones have one on the CPU, and only where bfloat16 does
    not hold them exactly. Buffers stay: rotary frequencies in bfloat16 would turn far positions by whole radians.
    """
    masters = {}
    for parameter in model.parameters():
        full = parameter.data
        parameter.data = full.to(torch.bfloat16)
        if parameter.requires_grad:
            masters[parameter] = nn.Parameter(full)
        elif not torch.equal(parameter.data.to(full.dtype), full):
            masters[parameter] = full.cpu()
    return masters


class MasterAdamW(torch.optim.AdamW):
    """AdamW that updates float32 masters by the gradients of their bfloat16 parameters, then rounds them into these.

    Its groups and its state are those of the masters, so they are saved and loaded as those of a float32 run.

    Args:
        groups: parameter groups of the model's parameters. masters: see `halve`. options: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], masters: dict[nn.Parameter, torch.Tensor], **options: Any) -> None:
        self._pairs = [(parameter, masters[parameter]) for group in groups for parameter in group["params"]]
        self._scale: torch.Tensor | None = None
        super().__init__([group | {"params": [masters[p] for p in group["params"]]} for group in groups], **options)

    @torch.no_grad()
    def clip(self, max_norm: float) -> torch.Tensor:
        """The norm of all gradients, float32; the next step scales them down to ``max_norm``, where they are above."""
        gradients = [parameter.grad for parameter, _ in self._pairs if parameter.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)))
        self._scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One AdamW step, a block of parameters at a time, so that few gradients stand in float32."""
        for pairs in self._blocks():
            masters = [master for _, master in pairs]
            for parameter, master in pairs:
                master.grad = parameter.grad.float()
            if self._scale is not None:
                torch._foreach_mul_([master.grad for master in masters], self._scale)
            super().step()  # leaves out what has no gradient: every other block
            for master in masters:
                master.grad = None
            torch._foreach_copy_([parameter for parameter, _ in pairs], masters)
        self._scale = None

    def _blocks(self) -> Iterator[list[tuple[nn.Parameter, torch.Tensor]]]:
        block, size = [], 0
        for parameter, master in self._pairs:
            if parameter.grad is None:
                continue
            if block and size + parameter.numel() > _BLOCK:
                yield block
                block, size = [], 0
            block.append((parameter, master))
            size += parameter.numel()
        if block:
            yield block
