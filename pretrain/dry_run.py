"""What ``train.py --dry_run`` says: what a training will take on so many GPUs, from its own data, without one."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from onerec.errors import InputError
from onerec.qwen3 import shape_of
from pretrain.dataset import PackedDataset
from pretrain.flops import peak_tflops, step_flops
from pretrain.memory import BF16, FP32, USABLE, least_recomputation, memory_gib

CARD, MEMORY = "H100", 79.0  # GiB; plan.py reckons with others
MFU = 0.4  # as plan.py: a goal, not a measurement


def dry_run(
    args: argparse.Namespace, config: dict[str, Any], dataset: PackedDataset, rows: tuple[int, int] | None, shards: str
) -> str:
    """The lines to print; ``config``: a checked config.json, ``rows``: what stage 1 trains.

    Raises `InputError` where a GPU's memory does not hold it.
    """
    shape, gpus, frozen = shape_of(config), args.dry_run, rows is not None
    what = (shape, dataset.config.max_length, args.minibatch_size, frozen)
    more = {"shards": shards, "gpus": gpus, "numbers": FP32 if args.precision == "fp32" else BF16}
    recompute = least_recomputation(MEMORY, *what, **more) if args.recompute == "auto" else args.recompute
    parts = memory_gib(*what, recompute=recompute, **more)
    total = sum(parts.values())
    held = " + ".join(f"{name} {value:.1f}" for name, value in parts.items())
    if total > USABLE * MEMORY:
        right = "shards (--fsdp, --deepspeed), --recompute full, a smaller --max_length, or more GPUs"
        raise InputError(args.model_dir, f"does not fit a {CARD} of {MEMORY:.0f} GiB: {total:.1f} ({held})", right)
    samples = dataset.samples
    lengths, learnt = samples.lengths, samples.learnt
    trained = rows[1] - rows[0] + 1 if rows else shape.vocab_size
    operations = step_flops(shape, lengths.astype(np.float64).tolist(), learnt, trained, frozen)
    rate = gpus * peak_tflops(CARD) * 1e12 * MFU * int(lengths.sum()) / operations
    tokens = sum(row_tokens(dataset, number) for number in range(len(dataset)))
    steps = -(-len(dataset) // (gpus * args.gradient_accumulation_steps))
    return (
        f"dry run: {gpus} x {CARD}, shards {shards}, recompute {recompute}, MFU {MFU:.0%} assumed; nothing is trained\n"
        f"memory: {total:.1f} GiB a GPU of {MEMORY:.0f} ({held})\n"
        f"time: {steps:,} steps, {tokens:,} tokens, {rate:,.0f} a second expected, {tokens / rate / 3600:,.1f} hours"
    )


def row_tokens(dataset: PackedDataset, number: int) -> int:
    """Tokens of a packed row; none of one that fills up."""
    row = dataset.rows[number]
    if row is None:
        return 0
    starts = dataset.samples.starts
    lengths = starts[row.samples + 1] - starts[row.samples]
    return int(lengths[:-1].sum() + (lengths[-1] if row.last_length is None else min(lengths[-1], row.last_length)))
