"""What a training run needs before it is rented: memory a GPU, tokens a second, hours; estimated, and said to be.

    python plan.py --model_dir models/Qwen3-1.7B_itemic --tokens 29e9 --gpus 8 16 64 --max_length 32768
    python plan.py --sizes 0.6B 1.7B 4B 8B --device H100 --tokens 5e9 --stage full

Memory is what `train.py` holds: float32 weights, their gradients and AdamW's two moments where they are trained (every GPU holds all
of it, or its share under --shards), bf16 copies, one row's activations, one chunk of logits. Speed is the operations of `pretrain.flops` at --mfu of the device's peak; the
default of --mfu is a goal, not a measurement. Shapes of Qwen3: their published configurations.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, POSITIVE, SHARE_ABOVE_0, ArgumentParser
from pretrain.flops import layer_weights, peak_tflops, step_flops

# hidden, layers, heads, key-value heads, intermediate, tied
QWEN3 = {
    "0.6B": (1024, 28, 16, 8, 3072, True),
    "1.7B": (2048, 28, 16, 8, 6144, True),
    "4B": (2560, 36, 32, 8, 9728, True),
    "8B": (4096, 36, 32, 8, 12288, False),
    "14B": (5120, 40, 40, 8, 17408, False),
}
ITEMIC = 3 * 8192 + 2
SHARDS = ("none", "zero1", "zero2", "zero3", "fsdp2")
VOCABULARY = 176_384  # Qwen3's 151,669 tokens and the itemic ones, in multiples of 256


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    p = ArgumentParser(__doc__)
    p.add_argument("--model_dir", type=Path, help="a checkpoint, instead of --sizes")
    p.add_argument("--sizes", nargs="+", default=list(QWEN3)[:4], choices=list(QWEN3), help="Qwen3 models with 3 x 8,192 itemic tokens")  # fmt: skip
    p.add_argument("--stage", choices=("stage1", "full"), default="full", help="itemic rows alone, or everything")
    p.add_argument("--tokens", type=POSITIVE, default=1e9, help="tokens that are trained on")
    p.add_argument("--gpus", type=COUNT, nargs="+", default=[1, 8, 64])
    p.add_argument("--device", default="H100", help="GPU, as its name has it")
    p.add_argument("--memory_gib", type=POSITIVE, default=79.0, help="memory of the GPU")
    p.add_argument("--max_length", type=COUNT, nargs="+", default=[8192, 32768], help="tokens of a packed row")
    p.add_argument("--sample_length", type=COUNT, default=2500, help="usual tokens of a sample")
    p.add_argument("--learnt", type=SHARE_ABOVE_0, default=1.0, help="share of the tokens that carry loss (SFT: fewer)")
    p.add_argument("--minibatch_size", type=COUNT, default=4096, help="positions with logits at a time")
    p.add_argument("--no_gradient_checkpointing", action="store_true")
    p.add_argument("--shards", choices=SHARDS, default="none", help="--deepspeed or --fsdp, by its example")
    p.add_argument("--mfu", type=SHARE_ABOVE_0, default=0.4)
    return p.parse_args(argv)


def shape(name: str) -> Any:
    """A configuration with what the estimates read."""
    hidden, layers, heads, kv, intermediate, tied = QWEN3[name]
    return types.SimpleNamespace(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv, head_dim=128,
        intermediate_size=intermediate, tie_word_embeddings=tied, vocab_size=VOCABULARY,
    )  # fmt: skip


def weights(config: Any) -> int:
    """Parameters of the matrices: layers, embedding, and the head where it is not tied (norms are left out)."""
    tables = 1 if config.tie_word_embeddings else 2
    return layer_weights(config) + tables * config.vocab_size * config.hidden_size


def held_bytes(config: Any, trained: int, shards: str, gpus: int) -> tuple[float, float]:
    """Bytes a GPU of (weights, gradients and optimizer) where ``trained`` parameters learn.

    Alone or under DDP: 4 + 2 (bf16 copy), 4 + 8. ZeRO in bf16: 2; gradient 2, float32 weight and moments 12. FSDP2: 4; 4 + 8. Under ZeRO-3 and
    FSDP2 the tables and two layers stand there whole, in bf16, while they are used.
    """
    count = weights(config)
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    gathered = 2.0 * (tables + 2 * layer_weights(config) / config.num_hidden_layers)
    return {
        "none": (6.0 * count, 12.0 * trained),
        "zero1": (2.0 * count, 2.0 * trained + 12.0 * trained / gpus),
        "zero2": (2.0 * count, 14.0 * trained / gpus),
        "zero3": (2.0 * count / gpus + gathered, 14.0 * trained / gpus),
        "fsdp2": (4.0 * count / gpus + gathered, 12.0 * trained / gpus),
    }[shards]


def memory_gib(
    config: Any,
    length: int,
    chunk: int,
    frozen: bool,
    checkpointing: bool,
    shards: str = "none",
    gpus: int = 1,
) -> dict[str, float]:
    """GiB a GPU by what holds them: ``weights, optimizer, activations, logits``."""
    count = weights(config)
    trained = ITEMIC * config.hidden_size * (1 if config.tie_word_embeddings else 2) if frozen else count
    weight_bytes, optimizer_bytes = held_bytes(config, trained, shards, gpus)
    width = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    # Of one layer, as autograd keeps them in bf16: input and its norms in float32, q k v, attention's output, gate, up, their product.
    inner = length * (2 * (2 * width + 3 * config.intermediate_size) + 4 * 4 * config.hidden_size)
    outer = length * 4 * config.hidden_size
    layers = config.num_hidden_layers
    kept = outer * layers + inner if checkpointing else inner * layers
    return {
        "weights": weight_bytes / 2**30,
        "optimizer": optimizer_bytes / 2**30,
        "activations": kept / 2**30,
        "logits": 2 * 4 * min(chunk, length) * config.vocab_size / 2**30,
    }


def tokens_per_second(config: Any, args: argparse.Namespace, length: int, gpus: int) -> float:
    """At --mfu of the devices' peak."""
    peak = peak_tflops(args.device)
    if peak is None:
        raise InputError(
            "--device",
            f"{args.device} is not a GPU that is known here",
            "add its bf16 peak to pretrain/flops.py",
        )
    samples = [args.sample_length] * max(1, length // args.sample_length)
    frozen = args.stage == "stage1"
    rows = ITEMIC if frozen else config.vocab_size
    operations = step_flops(config, samples, int(args.learnt * sum(samples)), rows, frozen)
    return gpus * peak * 1e12 * args.mfu * sum(samples) / operations


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.model_dir:
        from transformers import AutoConfig

        from onerec.model_folder import loading, read_config

        read_config(args.model_dir)
        with loading(args.model_dir):
            config = AutoConfig.from_pretrained(args.model_dir, trust_remote_code=False)
        models = {args.model_dir.name: config}
    else:
        models = {f"Qwen3-{size}": shape(size) for size in args.sizes}
    print(
        f"{args.stage}, {args.tokens:,.0f} tokens, {args.device}, shards {args.shards}, MFU {args.mfu:.0%}: every number is estimated"
    )
    print(
        "| model | parameters | row | GPUs | GiB a GPU (weights + optimizer + activations + logits) | fits | tokens/s | hours |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, config in models.items():
        for length in args.max_length:
            for gpus in args.gpus:
                gib = memory_gib(config, length, args.minibatch_size, args.stage == "stage1", not args.no_gradient_checkpointing, args.shards, gpus)  # fmt: skip
                total = sum(gib.values())
                parts = " + ".join(f"{value:.1f}" for value in gib.values())
                rate = tokens_per_second(config, args, length, gpus)
                fits = "yes" if total < args.memory_gib else "no"
                print(f"| {name} | {weights(config) / 1e9:.2f} B | {length:,} | {gpus} | {total:.1f} ({parts}) | {fits} | {rate:,.0f} | {args.tokens / rate / 3600:,.1f} |")  # fmt: skip


if __name__ == "__main__":
    cli(main)()
