"""What a training run needs before it is rented: memory a GPU, tokens a second, hours; estimated, and said to be.

    python plan.py --model_dir models/Qwen3-1.7B_itemic --tokens 29e9 --gpus 8 16 64 --max_length 32768
    python plan.py --sizes 0.6B 1.7B 4B 8B --device H100 --tokens 5e9 --stage full

Memory is what `train.py` holds on a GPU (`pretrain.memory`): bfloat16 weights; where they are trained, float32 masters,
AdamW's two moments and gradients (all of it, or a share under --shards); one row's activations, one chunk of logits.
Speed is the operations of `pretrain.flops` at --mfu of the device's peak; the default is a goal, not a measurement.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, POSITIVE, SHARE_ABOVE_0, ArgumentParser
from onerec.qwen3 import ITEMIC, QWEN3, weights
from pretrain.flops import peak_tflops, step_flops
from pretrain.memory import RECOMPUTE, SHARDS, USABLE, least_recomputation, memory_gib

_SAMPLE = 2500  # usual tokens of a sample


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    sizes = "Qwen3 models with 3 x 8,192 itemic tokens"
    add("--model_dir", type=Path, help="a checkpoint, instead of --sizes")
    add("--sizes", nargs="+", default=list(QWEN3)[:4], choices=list(QWEN3), help=sizes)
    add("--stage", choices=("stage1", "full"), default="full", help="itemic rows alone, or everything")
    add("--tokens", type=POSITIVE, default=1e9, help="tokens that are trained on")
    add("--gpus", type=COUNT, nargs="+", default=[1, 8, 64], help="numbers of GPUs")
    add("--device", default="H100", help="GPU, as its name has it")
    add("--memory_gib", type=POSITIVE, default=79.0, help="memory of the GPU")
    add("--max_length", type=COUNT, nargs="+", default=[8192, 32768], help="tokens of a packed row")
    add("--learnt", type=SHARE_ABOVE_0, default=1.0, help="share of the tokens that carry loss (SFT: fewer)")
    add("--minibatch_size", type=COUNT, default=4096, help="positions with logits at a time")
    add("--shards", choices=SHARDS, default="none", help="--deepspeed or --fsdp, by its example")
    less = "what the backward pass recomputes; auto: as little as fits"
    add("--recompute", choices=("auto", *RECOMPUTE), default="auto", help=less)
    add("--mfu", type=SHARE_ABOVE_0, default=0.4, help="share of the GPU's peak that is reached")
    return parser.parse_args(argv)


def tokens_per_second(config: Any, args: argparse.Namespace, length: int, gpus: int) -> float:
    peak = peak_tflops(args.device)
    if peak is None:
        right = "add its bf16 peak to pretrain/flops.py"
        raise InputError("--device", f"{args.device} is not a GPU that is known here", right)
    samples = [_SAMPLE] * max(1, length // _SAMPLE)
    frozen = args.stage == "stage1"
    rows = ITEMIC if frozen else config.vocab_size
    operations = step_flops(config, samples, int(args.learnt * sum(samples)), rows, frozen)
    return gpus * peak * 1e12 * args.mfu * sum(samples) / operations


def models_of(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration of --model_dir, or the shapes of --sizes, by name."""
    if not args.model_dir:
        return {f"Qwen3-{size}": QWEN3[size] for size in args.sizes}
    from transformers import AutoConfig

    from onerec.model_folder import loading, read_config

    read_config(args.model_dir)
    with loading(args.model_dir):
        return {args.model_dir.name: AutoConfig.from_pretrained(args.model_dir, trust_remote_code=False)}


def row(name: str, config: Any, length: int, gpus: int, args: argparse.Namespace) -> str:
    what = (config, length, args.minibatch_size, args.stage == "stage1")
    shards = {"shards": args.shards, "gpus": gpus}
    chosen = args.recompute
    recompute = least_recomputation(args.memory_gib, *what, **shards) if chosen == "auto" else chosen
    gib = memory_gib(*what, recompute=recompute, **shards)
    total = sum(gib.values())
    parts = " + ".join(f"{value:.1f}" for value in gib.values())
    fits = "yes" if total <= USABLE * args.memory_gib else "no"
    rate = tokens_per_second(config, args, length, gpus)
    cells = [
        name,
        f"{weights(config) / 1e9:.2f} B",
        f"{length:,}",
        str(gpus),
        recompute,
        f"{total:.1f} ({parts})",
        fits,
    ]
    return f"| {' | '.join(cells)} | {rate:,.0f} | {args.tokens / rate / 3600:,.1f} |"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    models = models_of(args)
    about = f"{args.stage}, {args.tokens:,.0f} tokens, {args.device}, shards {args.shards}, MFU {args.mfu:.0%}"
    print(f"{about}: every number is estimated")
    memory = "GiB a GPU (weights + optimizer + gradients + activations + logits)"
    print(f"| model | parameters | row | GPUs | recomputed | {memory} | fits | tokens/s | hours |")
    print("|---" * 9 + "|")
    for name, config in models.items():
        for length in args.max_length:
            for gpus in args.gpus:
                print(row(name, config, length, gpus, args))


if __name__ == "__main__":
    cli(main)()
