"""What a training run needs before it is rented: memory a GPU, tokens a second, hours; estimated, and said to be.

    python plan.py --model_dir models/Qwen3-1.7B_itemic --tokens 29e9 --gpus 8 16 64 --max_length 32768
    python plan.py --sizes 0.6B 1.7B 4B 8B --device H100 --tokens 5e9 --stage full

Memory is what `train.py` holds: float32 weights, their gradients and AdamW's two moments where they are trained (every
GPU holds all of it, or its share under --shards), bf16 copies, one row's activations, one chunk of logits. Speed is
the operations of `pretrain.flops` at --mfu of the device's peak; the default of --mfu is a goal, not a measurement.
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
from onerec.qwen3 import GIB, ITEMIC, QWEN3, layer_weights, table_weights, weights
from pretrain.flops import peak_tflops, step_flops

_SAMPLE = 2500  # usual tokens of a sample
SHARDS = ("none", "zero1", "zero2", "zero3", "fsdp2")


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
    add("--mfu", type=SHARE_ABOVE_0, default=0.4, help="share of the GPU's peak that is reached")
    return parser.parse_args(argv)


def held_bytes(config: Any, trained: int, shards: str, gpus: int) -> tuple[float, float]:
    """Bytes a GPU of (weights, gradients and optimizer) where ``trained`` parameters learn.

    Alone or under DDP: 4 + 2 (bf16 copy), 4 + 8. ZeRO in bf16: 2; gradient 2, float32 weight and moments 12. FSDP2: 4;
    4 + 8. Under ZeRO-3 and FSDP2 the tables and two layers stand there whole, in bf16, while they are used.
    """
    count = weights(config)
    gathered = 2.0 * (table_weights(config) + 2 * layer_weights(config) / config.num_hidden_layers)
    return {
        "none": (6.0 * count, 12.0 * trained),
        "zero1": (2.0 * count, 2.0 * trained + 12.0 * trained / gpus),
        "zero2": (2.0 * count, 14.0 * trained / gpus),
        "zero3": (2.0 * count / gpus + gathered, 14.0 * trained / gpus),
        "fsdp2": (4.0 * count / gpus + gathered, 12.0 * trained / gpus),
    }[shards]


def memory_gib(
    config: Any, length: int, chunk: int, frozen: bool, checkpointing: bool, shards: str = "none", gpus: int = 1
) -> dict[str, float]:
    """GiB a GPU by what holds them: ``weights, optimizer, activations, logits``."""
    count = weights(config)
    trained = ITEMIC * config.hidden_size * (1 if config.tie_word_embeddings else 2) if frozen else count
    weight_bytes, optimizer_bytes = held_bytes(config, trained, shards, gpus)
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    # Of one layer, as autograd keeps them in bf16: input and its norms in float32, q k v, attention's output, gate, up,
    # their product.
    inner = length * (2 * (2 * width + 3 * config.intermediate_size) + 4 * 4 * config.hidden_size)
    outer = length * 4 * config.hidden_size
    layers = config.num_hidden_layers
    kept = outer * layers + inner if checkpointing else inner * layers
    return {
        "weights": weight_bytes / GIB,
        "optimizer": optimizer_bytes / GIB,
        "activations": kept / GIB,
        "logits": 2 * 4 * min(chunk, length) * config.vocab_size / GIB,
    }


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
    gib = memory_gib(config, length, args.minibatch_size, args.stage == "stage1", True, args.shards, gpus)
    total = sum(gib.values())
    parts = " + ".join(f"{value:.1f}" for value in gib.values())
    fits = "yes" if total < args.memory_gib else "no"
    rate = tokens_per_second(config, args, length, gpus)
    cells = [name, f"{weights(config) / 1e9:.2f} B", f"{length:,}", str(gpus), f"{total:.1f} ({parts})", fits]
    return f"| {' | '.join(cells)} | {rate:,.0f} | {args.tokens / rate / 3600:,.1f} |"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    models = models_of(args)
    about = f"{args.stage}, {args.tokens:,.0f} tokens, {args.device}, shards {args.shards}, MFU {args.mfu:.0%}"
    print(f"{about}: every number is estimated")
    memory = "GiB a GPU (weights + optimizer + activations + logits)"
    print(f"| model | parameters | row | GPUs | {memory} | fits | tokens/s | hours |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config in models.items():
        for length in args.max_length:
            for gpus in args.gpus:
                print(row(name, config, length, gpus, args))


if __name__ == "__main__":
    cli(main)()
