"""Training steps in Qwen3's shapes on one GPU: tokens a second, MFU and peak memory, beside what plan.py estimates.

    python scripts/perf/train_shape.py                                    # 0.6B and 1.7B, both stages, rows of 8,192
    python scripts/perf/train_shape.py --sizes 1.7B --length 32768 --stages full --kernels plain compile
    python scripts/perf/train_shape.py --sizes toy --length 512 --steps 2   # any machine: does it run

Weights and tokens are random, samples of --sample_length tokens; the model, loss, attention and optimizer are
train.py's, in a bare loop, and so are the weights: bfloat16 with float32 masters on a GPU. What the machine has of
--kernels comes one after another, each with the same weights and rows; their losses on the first row are compared. An
attention's name stands for plain layers with it; --recompute is train.py's. Seconds are medians. MFU: operations by
`pretrain.flops` over the device's bf16 peak, as in the trainer's log.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import SIZES, ArgumentParser, add_numbers, in_turns, medians, print_heads, print_row

from onerec.cli import cli
from onerec.qwen3 import GIB, ITEMIC
from pretrain.flops import peak_tflops, step_flops
from pretrain.memory import BF16, FP32, RECOMPUTE, least_recomputation, memory_gib

KERNELS = ("plain", "compile", "liger")
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
        steps=(5, "timed steps of each side"),
    )
    kinds = "plain layers, compiled ones, Liger's; each with the fastest attention"
    parser.add_argument("--kernels", nargs="+", default=["plain"], choices=KERNELS, help=kinds)
    less = "what the backward pass recomputes; auto: as little as fits"
    parser.add_argument("--recompute", default="auto", choices=("auto", *RECOMPUTE), help=less)
    return parser.parse_args()


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
    """A model in training with one kind of kernels."""

    def __init__(self, config: Any, frozen: bool, kernels: str, what: str, device: str) -> None:
        import torch
        from transformers import Qwen3ForCausalLM

        from pretrain.extras import compile_layers, recompute
        from pretrain.fused import fuse
        from pretrain.masters import MasterAdamW
        from pretrain.model import PackedLM
        from pretrain.trainer import weight_decay_groups

        self.device = device
        torch.manual_seed(0)
        with torch.device(device):
            lm = Qwen3ForCausalLM(config)
        rows = (config.vocab_size - ITEMIC, config.vocab_size - 1) if frozen else None
        self.model = PackedLM(lm, rows, CHUNK, half=device == "cuda").train()
        if kernels == "compile":
            compile_layers(lm)
        if kernels == "liger" and fuse(lm, torch.device(device)) != "Liger":
            raise LookupError("Liger is not installed, or gives other numbers")
        recompute(lm, what)
        if device == "cuda":
            self.model.halve()
        groups, masters = weight_decay_groups(self.model, 0.1), self.model.masters
        how = {"lr": 1e-4, "fused": True}
        self.optimizer = MasterAdamW(groups, masters, **how) if masters else torch.optim.AdamW(groups, **how)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]

    def step(self, row: dict[str, Any]) -> float:
        """One step; returns the loss before it."""
        import torch

        inputs = {name: x.to(self.device) if torch.is_tensor(x) else x for name, x in row.items()}
        outputs = self.model(**inputs)
        loss = outputs["loss_sum"] / len(outputs["losses"])
        loss.backward()
        if self.model.masters:
            self.optimizer.clip(1.0)
        else:
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        return float(loss.detach())


def bench(size: str, stage: str, args: argparse.Namespace, device: str) -> None:
    """A row of the table for each of ``args.kernels``; the first step of each is not timed."""
    import torch
    from transformers import Qwen3Config

    shape, frozen = SIZES[size], stage == "stage1"
    config = Qwen3Config(**dataclasses.asdict(shape), max_position_embeddings=max(40960, args.length))
    name, memory = ("cpu", 1e9) if device == "cpu" else card()
    numbers = BF16 if device == "cuda" else FP32
    reckoned = (shape, args.length, CHUNK, frozen)
    auto = least_recomputation(memory, *reckoned, numbers=numbers)
    what = auto if args.recompute == "auto" else args.recompute
    planned = sum(memory_gib(*reckoned, recompute=what, numbers=numbers).values())
    row = random_row(shape.vocab_size, args, 0)
    lengths = np.diff(row["cu_seq_lens_q"].numpy()).tolist()
    trained_rows = ITEMIC if frozen else shape.vocab_size
    operations = step_flops(config, lengths, sum(lengths) - len(lengths), trained_rows, frozen)
    peak = peak_tflops(name)
    first: dict[str, float] = {}
    for kernels in args.kernels:
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            side = Side(config, frozen, kernels, what, device)
            first[kernels] = side.step(row)
            middle = medians(in_turns({kernels: lambda side=side: side.step(row)}, args.steps))[kernels]
        except (LookupError, torch.OutOfMemoryError) as error:
            print_row(size, stage, kernels, what, *["–"] * 5, f"{planned:.1f}", str(error).splitlines()[0][:80])
            continue
        apart = abs(first[kernels] - next(iter(first.values())))
        gib = f"{torch.cuda.max_memory_allocated() / GIB:.1f}" if device == "cuda" else "–"
        mfu = f"{operations / middle / peak / 1e12:.1%}" if peak else "–"
        attention, rate = side.model.lm.config._attn_implementation, f"{sum(lengths) / middle:,.0f}"
        print_row(
            size, stage, kernels, what, attention, f"{middle:.3f}", rate, mfu, gib, f"{planned:.1f}", f"{apart:.2g}"
        )
        del side


def card() -> tuple[str, float]:
    """The GPU's name, and its memory in GiB."""
    import torch

    return torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GIB


def main() -> None:
    import torch

    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    rows = f"rows of {args.length:,} tokens, samples of {args.sample_length:,}"
    print(f"{name}, torch {torch.__version__}: {rows}")
    heads = (
        "Qwen3",
        "stage",
        "layers",
        "recomputed",
        "attention",
        "s a step",
        "tokens/s",
        "MFU",
        "peak GiB",
        "plan.py",
    )
    print_heads(*heads, "loss apart")
    for size in args.sizes:
        for stage in args.stages:
            bench(size, stage, args, device)


if __name__ == "__main__":
    cli(main)()
