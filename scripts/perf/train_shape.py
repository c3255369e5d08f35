"""Training steps in Qwen3's shapes on one GPU: tokens a second, MFU and peak memory, beside what plan.py estimates.

    python scripts/perf/train_shape.py                                    # 0.6B and 1.7B, both stages, rows of 8,192
    python scripts/perf/train_shape.py --sizes 1.7B --length 32768 --stages full
    python scripts/perf/train_shape.py --sizes toy --length 512 --steps 2   # any machine: does it run

Weights and tokens are random, samples of --sample_length tokens; the model, loss, attention and optimizer are
train.py's, in a bare loop. The attentions that the machine has take
turns step by step; their losses on the first row are compared before anything is timed. Seconds are medians. MFU:
operations by `pretrain.flops` over the device's bf16 peak, as in the trainer's log.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import SIZES, ArgumentParser, add_numbers, in_turns, medians, print_heads, print_row

from onerec.cli import cli
from onerec.errors import InputError
from onerec.qwen3 import ITEMIC
from pretrain import attention
from pretrain.flops import peak_tflops, step_flops
from pretrain.plan import memory_gib

ATTENTIONS = (attention.PACKED_SDPA, attention.PACKED_VARLEN, attention.FLASH)
CHUNK = 4096  # positions whose logits exist at a time


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    sizes = "Qwen3 models with 3 x 8,192 itemic tokens"
    parser.add_argument("--sizes", nargs="+", default=["0.6B", "1.7B"], choices=SIZES, help=sizes)
    parser.add_argument("--stages", nargs="+", default=["full", "stage1"], choices=["full", "stage1"])
    add_numbers(
        parser,
        length=(8192, "tokens of a packed row"),
        sample_length=(2048, "tokens of a sample"),
        steps=(5, "timed steps of each attention"),
    )
    parser.add_argument("--no_gradient_checkpointing", action="store_true")
    return parser.parse_args()


def attentions(half: bool) -> list[str]:
    """Every attention of the trainer that this machine has."""
    found = []
    for name in ATTENTIONS:
        with contextlib.suppress(InputError):
            found.append(attention.register(name, half))
    return found


def random_row(vocabulary: int, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One packed row as the trainer's collator makes it, every token learnt but the samples' first."""
    from pretrain.dataset import collate

    lengths = [args.sample_length] * (args.length // args.sample_length) or [args.length]
    borders = np.cumsum([0, *lengths])
    ids = np.random.default_rng(seed).integers(vocabulary, size=borders[-1])
    positions = np.concatenate([np.arange(n) for n in lengths])
    labels = np.where(positions > 0, ids, -100)
    row = {"input_ids": ids, "position_ids": positions, "labels": labels, "cu_seq_lens": borders.astype(np.int32)}
    return collate([row])


class Side:
    """A model in training, stepped with one attention or another."""

    def __init__(self, config: Any, frozen: bool, args: argparse.Namespace, device: str) -> None:
        import torch
        from transformers import Qwen3ForCausalLM

        from pretrain.model import PackedLM
        from pretrain.trainer import weight_decay_groups

        torch.manual_seed(0)
        with torch.device(device):
            lm = Qwen3ForCausalLM(config)
        self.device, self.half = device, device == "cuda"
        rows = (config.vocab_size - ITEMIC, config.vocab_size - 1) if frozen else None
        self.model = PackedLM(lm, rows, CHUNK, attention.PACKED_SDPA).train()
        if not args.no_gradient_checkpointing:
            lm.gradient_checkpointing_enable()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weight_decay_groups(self.model, 0.1), lr=1e-4, fused=device == "cuda")

    def loss(self, row: dict[str, Any]) -> Any:
        import torch

        inputs = {name: x.to(self.device) if torch.is_tensor(x) else x for name, x in row.items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=self.half):
            outputs = self.model(**inputs)
        return outputs["loss_sum"] / len(outputs["losses"])

    def step(self, row: dict[str, Any]) -> None:
        import torch

        self.loss(row).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bench(size: str, stage: str, args: argparse.Namespace, device: str) -> None:
    import torch
    from transformers import Qwen3Config

    shape, frozen = SIZES[size], stage == "stage1"
    config = Qwen3Config(**dataclasses.asdict(shape), max_position_embeddings=max(40960, args.length))
    side = Side(config, frozen, args, device)
    names = attentions(side.half)
    row = random_row(shape.vocab_size, args, 0)
    losses = {}
    for name in names:
        side.model.lm.set_attn_implementation(name)
        with torch.no_grad():
            losses[name] = float(side.loss(row))
    apart = max(losses.values()) - min(losses.values())
    if apart > (2e-2 if side.half else 1e-4):
        raise SystemExit(f"the attentions' losses are {apart:.2g} apart: {losses}")
    gib: dict[str, float] = {}

    def work(name: str) -> None:
        side.model.lm.set_attn_implementation(name)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        side.step(row)
        if device == "cuda":
            gib[name] = torch.cuda.max_memory_allocated() / 2**30

    seconds = medians(in_turns({name: lambda name=name: work(name) for name in names}, args.steps))
    lengths = np.diff(row["cu_seq_lens_q"].numpy()).tolist()
    trained_rows = ITEMIC if frozen else shape.vocab_size
    operations = step_flops(config, lengths, sum(lengths) - len(lengths), trained_rows, frozen)
    peak = peak_tflops(torch.cuda.get_device_name()) if device == "cuda" else None
    recompute = not args.no_gradient_checkpointing
    planned = sum(memory_gib(shape, args.length, CHUNK, frozen, recompute).values())
    for name, middle in seconds.items():
        mfu = f"{operations / middle / peak / 1e12:.1%}" if peak else "–"
        memory = f"{gib[name]:.1f}" if gib else "–"
        rate, times = f"{sum(lengths) / middle:,.0f}", f"{seconds[names[0]] / middle:.2f}"
        print_row(size, stage, name, f"{middle:.3f}", rate, times, mfu, memory, f"{planned:.1f}")


def main() -> None:
    import torch

    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    checkpointing = "without" if args.no_gradient_checkpointing else "with"
    rows = f"rows of {args.length:,} tokens, samples of {args.sample_length:,}"
    print(f"{name}, torch {torch.__version__}: {rows}, {checkpointing} gradient checkpointing")
    heads = ("Qwen3", "stage", "attention", "s a step", "tokens/s", "times the first", "MFU", "peak GiB", "plan.py")
    print_heads(*heads)
    for size in args.sizes:
        for stage in args.stages:
            bench(size, stage, args, device)
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    cli(main)()
