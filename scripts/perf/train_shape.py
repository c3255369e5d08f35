"""Training steps in Qwen3's shapes on one GPU: tokens a second, MFU and peak memory, beside what plan.py estimates.

    python scripts/perf/train_shape.py                                    # 0.6B and 1.7B, both stages, rows of 8,192 tokens
    python scripts/perf/train_shape.py --sizes 1.7B --length 32768 --stages full
    python scripts/perf/train_shape.py --sizes toy --length 512 --steps 2   # any machine: does it run

Weights and tokens are random, samples of --sample_length tokens; the model, loss, attention and optimizer are train.py's, in the
bare loop beside which `pretrain.py steps` puts the trainer. The attentions that the machine has take turns step by step; their losses on the first row
are compared before anything is timed. Seconds are medians. MFU: operations by `pretrain.flops` over the device's bf16 peak, as in the trainer's log.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT

sys.path.insert(0, str(ROOT))
from onerec.cli import cli
from onerec.flags import COUNT, ArgumentParser
from pretrain import attention
from pretrain.flops import peak_tflops, step_flops
from pretrain.plan import ITEMIC, QWEN3, memory_gib, shape

ATTENTIONS = (attention.PACKED_SDPA, attention.PACKED_VARLEN, attention.FLASH)
TOY = (64, 2, 4, 2, 128, True)


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--sizes", nargs="+", default=["0.6B", "1.7B"], choices=[*QWEN3, "toy"], help="Qwen3 models with 3 x 8,192 itemic tokens")  # fmt: skip
    add("--stages", nargs="+", default=["full", "stage1"], choices=["full", "stage1"])
    add("--length", type=COUNT, default=8192, help="tokens of a packed row")
    add("--sample_length", type=COUNT, default=2048, help="tokens of a sample")
    add("--steps", type=COUNT, default=5, help="timed steps of each attention")
    add("--minibatch_size", type=COUNT, default=4096, help="positions whose logits exist at a time")
    add("--no_gradient_checkpointing", action="store_true")
    add(
        "--attentions",
        nargs="+",
        choices=ATTENTIONS,
        help="attentions to compare (all that this machine has)",
    )
    return parser.parse_args()


def attentions(half: bool) -> list[str]:
    """Every attention of the trainer that this machine has."""
    from onerec.errors import InputError

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
    return collate([{"input_ids": ids, "position_ids": positions, "labels": labels, "cu_seq_lens": borders.astype(np.int32)}])  # fmt: skip


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
        self.model = PackedLM(lm, rows, args.minibatch_size, attention.PACKED_SDPA).train()
        if not args.no_gradient_checkpointing:
            lm.gradient_checkpointing_enable()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weight_decay_groups(self.model, 0.1), lr=1e-4, fused=device == "cuda")

    def loss(self, row: dict[str, Any]) -> Any:
        """Mean loss of a row."""
        import torch

        inputs = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in row.items()}  # fmt: skip
        with torch.autocast("cuda", torch.bfloat16, enabled=self.half):
            outputs = self.model(**inputs)
        return outputs["loss_sum"] / len(outputs["losses"])

    def step(self, row: dict[str, Any]) -> float:
        """Seconds of one optimizer step."""
        import torch

        wait = torch.cuda.synchronize if self.device == "cuda" else lambda: None
        wait()
        start = time.perf_counter()
        self.loss(row).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        wait()
        return time.perf_counter() - start


def bench(size: str, stage: str, args: argparse.Namespace, device: str) -> None:
    """One line an attention."""
    import torch
    from transformers import Qwen3Config

    estimate = shape(size) if size != "toy" else None
    hidden, layers, heads, kv_heads, intermediate, tied = QWEN3.get(size, TOY)
    vocabulary = estimate.vocab_size if estimate else ITEMIC + 1000
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=intermediate, head_dim=128 if estimate else 16,
        tie_word_embeddings=tied, max_position_embeddings=max(40960, args.length),
    )  # fmt: skip
    frozen = stage == "stage1"
    side = Side(config, frozen, args, device)
    names = args.attentions or attentions(side.half)
    row = random_row(vocabulary, args, 0)
    losses = {}
    for name in names:
        side.model.lm.set_attn_implementation(name)
        with torch.no_grad():
            losses[name] = float(side.loss(row))
    apart = max(losses.values()) - min(losses.values())
    if apart > (2e-2 if side.half else 1e-4):
        raise SystemExit(f"the attentions' losses are {apart:.2g} apart: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gib: dict[str, float] = {}
    for turn in range(args.steps + 1):
        for name in names:
            side.model.lm.set_attn_implementation(name)
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            spent = side.step(random_row(vocabulary, args, turn))
            if turn:
                seconds[name].append(spent)
            if device == "cuda":
                gib[name] = torch.cuda.max_memory_allocated() / 2**30
    lengths = np.diff(row["cu_seq_lens_q"].numpy()).tolist()
    operations = step_flops(config, lengths, sum(lengths) - len(lengths), ITEMIC if frozen else vocabulary, frozen)  # fmt: skip
    peak = peak_tflops(torch.cuda.get_device_name()) if device == "cuda" else None
    planned = ""
    if estimate:
        parts = memory_gib(estimate, args.length, args.minibatch_size, frozen, not args.no_gradient_checkpointing)
        planned = f"{sum(parts.values()):.1f}"
    first = statistics.median(seconds[names[0]])
    for name in names:
        middle = statistics.median(seconds[name])
        mfu = f"{operations / middle / peak / 1e12:.1%}" if peak else "–"
        memory = f"{gib[name]:.1f}" if gib else "–"
        print(
            f"| {size} | {stage} | {name} | {middle:.3f} | {sum(lengths) / middle:,.0f} | {first / middle:.2f} | {mfu} | {memory} | {planned or '–'} |",
            flush=True,
        )


def main() -> None:
    import torch

    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    checkpointing = "without" if args.no_gradient_checkpointing else "with"
    print(f"{name}, torch {torch.__version__}: rows of {args.length:,} tokens, samples of {args.sample_length:,}, {checkpointing} gradient checkpointing")  # fmt: skip
    print("| Qwen3 | stage | attention | s a step | tokens/s | times the first | MFU | peak GiB | plan.py |")
    print("|---|---|---|---|---|---|---|---|---|")
    for size in args.sizes:
        for stage in args.stages:
            bench(size, stage, args, device)
            if device == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    cli(main)()
