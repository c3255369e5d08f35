"""What a training holds in a GPU's memory, by arithmetic; no GPU, no torch.

A step has two peaks: at the loss all activations stand there with a chunk of logits; at the end of the backward pass
all gradients do, with what one layer computes. Activations are counted tensor by tensor as autograd keeps them.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from onerec.qwen3 import GIB, ITEMIC, layer_weights, table_weights, weights

RECOMPUTE = ("none", "attention", "full")  # from the fastest to the smallest
SHARDS = ("none", "zero1", "zero2", "zero3", "fsdp2")
USABLE = 0.92  # of a GPU's memory: what is left goes to the context, libraries and gaps between blocks
_FILLED = 0.85  # of it, where layers are chosen one by one to fill it: the estimate is within a tenth


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Bytes of a number: ``stream`` of what flows from layer to layer, ``product`` of a matrix product's result.

    ``weight``, ``master`` (a second copy of what is trained) and ``gradient`` are those of one process or DDP.
    """

    stream: int
    product: int
    weight: int
    master: int
    gradient: int


BF16 = Numbers(stream=2, product=2, weight=2, master=4, gradient=2)
FP32 = Numbers(stream=4, product=4, weight=4, master=0, gradient=4)
_MOMENTS = 8  # AdamW's two, float32


def held_bytes(
    config: Any, trained: int, shards: str, gpus: int, numbers: Numbers = BF16
) -> tuple[float, float, float]:
    """Bytes a GPU of (weights, optimizer state, gradients) where ``trained`` parameters learn.

    ZeRO: bfloat16 weights and gradients, float32 weights and moments. FSDP2: all in float32, cut. Under ZeRO-3 and
    FSDP2 the tables and two layers stand there whole, in bfloat16, while they are used.
    """
    count = weights(config)
    gathered = 2.0 * (table_weights(config) + 2 * layer_weights(config) / config.num_hidden_layers)
    return {
        "none": (numbers.weight * count, (numbers.master + _MOMENTS) * trained, numbers.gradient * trained),
        "zero1": (2.0 * count, 12.0 * trained / gpus, 2.0 * trained),
        "zero2": (2.0 * count, 12.0 * trained / gpus, 2.0 * trained / gpus),
        "zero3": (2.0 * count / gpus + gathered, 12.0 * trained / gpus, 2.0 * trained / gpus),
        "fsdp2": (4.0 * count / gpus + gathered, 8.0 * trained / gpus, 4.0 * trained / gpus),
    }[shards]


def layer_bytes(config: Any, numbers: Numbers = BF16) -> tuple[float, float]:
    """Bytes a token that autograd keeps of one layer: (attention without its input, all the rest).

    As transformers' Qwen3 computes: norms in float32, nothing fused but attention itself.
    """
    stream, product, width = numbers.stream, numbers.product, config.hidden_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    heads = 2 * config.num_attention_heads + config.num_key_value_heads
    # Queries and keys before and within their norms; what the kernel reads and writes; its sums and the norms' roots.
    attention = (4 + product) * (query + key) + product * (2 * query + 2 * key) + 4 * heads
    # Each norm's input and result before its weight, and what the matrices read: a cast for each, where they differ.
    reads = 2 if stream == product else 5
    norms = 2 * ((4 + stream) * width + 4) + reads * product * width
    return attention, norms + 4 * product * config.intermediate_size


def by_layer(recompute: str, layers: int) -> list[str]:
    """What each of ``layers`` recomputes: ``full:3`` is full in the first three, and ``attention`` in the others."""
    what, _, count = recompute.partition(":")
    first = int(count or layers)
    return [what] * first + [RECOMPUTE[max(0, RECOMPUTE.index(what) - 1)]] * (layers - first)


def activation_bytes(config: Any, length: int, recompute: str, numbers: Numbers = BF16) -> tuple[float, float]:
    """Bytes of a row of ``length`` tokens: (all that is kept at the loss, the most that one layer adds backward)."""
    attention, rest = layer_bytes(config, numbers)
    stream = numbers.stream * config.hidden_size
    kinds = {"none": (attention + rest, 0.0), "attention": (rest, attention), "full": (stream, attention + rest)}
    layers = [kinds[what] for what in by_layer(recompute, config.num_hidden_layers)]
    last = 4 * config.hidden_size + 4 * stream  # the last norm, the learnt positions and their gradient
    return length * (sum(kept for kept, _ in layers) + last), length * max(added for _, added in layers)


def memory_gib(
    config: Any,
    length: int,
    chunk: int,
    frozen: bool,
    recompute: str,
    shards: str = "none",
    gpus: int = 1,
    numbers: Numbers = BF16,
) -> dict[str, float]:
    """GiB a GPU at the higher of the two peaks, by what holds them.

    ``weights, optimizer, gradients, activations, logits`` (with the head's gradient, added up in float32).
    """
    trained = ITEMIC * config.hidden_size * (1 if config.tie_word_embeddings else 2) if frozen else weights(config)
    weight_bytes, optimizer_bytes, gradient_bytes = held_bytes(config, trained, shards, gpus, numbers)
    kept, added = activation_bytes(config, length, recompute, numbers)
    head = 4.0 * config.hidden_size * (ITEMIC if frozen else config.vocab_size)
    logits = float(numbers.product * min(chunk, length) * config.vocab_size)
    # DDP's buckets are the gradients, and stay from step to step.
    standing = gradient_bytes if shards == "none" and gpus > 1 else 0.0
    layer = kept / config.num_hidden_layers + added
    at_loss = (standing, kept, logits + head)
    at_end = (gradient_bytes, layer, 0.0)
    gradients, activations, logits = max(at_loss, at_end, key=sum)
    found = (weight_bytes, optimizer_bytes, gradients, activations, logits)
    names = ("weights", "optimizer", "gradients", "activations", "logits")
    return {name: value / GIB for name, value in zip(names, found, strict=True)}


def least_recomputation(memory: float, config: Any, *arguments: Any, **more: Any) -> str:
    """The fastest way (`by_layer`) that fits ``memory`` GiB by `memory_gib`, or full.

    ``arguments``, ``more``: those of `memory_gib` but ``recompute``.
    """
    layers = range(1, config.num_hidden_layers)
    some = ([f"{what}:{count}" for count in layers] + [what] for what in RECOMPUTE[1:])
    for recompute in ("none", *itertools.chain(*some)):
        usable = _FILLED if ":" in recompute else USABLE
        if sum(memory_gib(config, *arguments, recompute=recompute, **more).values()) <= usable * memory:
            return recompute
    return RECOMPUTE[-1]
