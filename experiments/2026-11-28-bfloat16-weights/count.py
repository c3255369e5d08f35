"""Kernels and bytes of a step's layers, forward and backward, counted on tensors without numbers: no GPU.

    python experiments/2026-11-28-bfloat16-weights/count.py <table.json> [--size 1.7B] [--length 8192]

An operation that is no view counts as one kernel, which reads its inputs and writes its outputs once. Loss and
optimizer are left out. Attention stands for a fused kernel: its inputs and output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from onerec.flags import COUNT, ArgumentParser
from onerec.qwen3 import QWEN3
from pretrain.extras import recompute
from pretrain.model import quiet

MATRICES = ("mm", "addmm", "bmm")
WITHOUT_WORK = ("empty", "detach", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_unsafe_view")


class Attend(torch.autograd.Function):
    """Attention of heads [T, N, D] as one kernel forward and one backward."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        return query.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.clone() for tensor in ctx.saved_tensors)


class Counter(TorchDispatchMode):
    """``kernels``, and ``bytes`` of those that are no matrix products."""

    kernels = bytes = products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name not in WITHOUT_WORK:
            self.kernels += 1
            moved = [x.numel() * x.element_size() for x in tree_leaves((args, kwargs, out)) if torch.is_tensor(x)]
            if name in MATRICES:
                self.products += sum(moved)
            else:
                self.bytes += sum(moved)
        return out


def count(size: str, length: int, half: bool, what: str) -> dict[str, Any]:
    transformers = quiet()

    def attend(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return Attend.apply(*(x[0].transpose(0, 1).to(value.dtype).contiguous() for x in (query, key, value)))[
            None
        ], None

    transformers.AttentionInterface.register("counted", attend)
    config = transformers.Qwen3Config(**dataclasses.asdict(QWEN3[size]))
    with FakeTensorMode():
        lm = transformers.Qwen3ForCausalLM(config).train()
        lm.set_attn_implementation("counted")
        if half:
            for parameter in lm.parameters():
                parameter.data = parameter.data.bfloat16()
        recompute(lm, what)
        ids = torch.zeros(1, length, dtype=torch.int64)
        cast = contextlib.nullcontext() if half else torch.autocast("cpu", torch.bfloat16)
        with Counter() as counter:
            with cast:
                hidden = lm.model(input_ids=ids, use_cache=False).last_hidden_state
            hidden.backward(torch.ones_like(hidden))
    return {
        "weights": "bfloat16" if half else "float32, autocast",
        "recomputed": what,
        "kernels": counter.kernels,
        "GB beside matrix products": round(counter.bytes / 1e9, 1),
        "ms at 3.35 TB/s": round(counter.bytes / 3.35e9, 0),
    }


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=list(QWEN3), default="1.7B")
    parser.add_argument("--length", type=COUNT, default=8192)
    args = parser.parse_args()
    sides = [(False, "full"), (False, "none"), (True, "full"), (True, "attention"), (True, "none")]
    table = [count(args.size, args.length, *side) for side in sides]
    args.out.write_text(json.dumps(table, indent=1) + "\n")
    for row in table:
        print(row)


if __name__ == "__main__":
    main()
