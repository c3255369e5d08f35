"""Floating-point operations of a training step, for model FLOPs utilisation (MFU).

Counted as in PaLM (arXiv 2204.02311, appendix B): what the model's mathematics needs, not what recomputation adds. A
matrix of P weights costs 2 P a token forward, as much for the gradient of its input, and as much again for its own
where it is trained; causal attention over a sample of l tokens costs half of what a full square would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onerec.qwen3 import layer_weights

# bf16 TFLOP/s without sparsity, from the vendors' data sheets; the longest name that the device's contains counts.
PEAK_TFLOPS = {
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "H200": 989.0,
    "H800": 989.0,
    "B200": 2250.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 125.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Peak of a GPU by its name; None for one that is not listed."""
    known = [name for name in PEAK_TFLOPS if name in device_name]
    return PEAK_TFLOPS[max(known, key=len)] if known else None


def step_flops(
    config: Any, sample_lengths: Sequence[int], learnt: int, trained_head_rows: int, frozen: bool = False
) -> float:
    """Operations of forward and backward for samples of these lengths, ``learnt`` tokens of which go through the head.

    ``frozen``: stage 1, where the layers' weights get no gradient and ``trained_head_rows`` rows of the head do.
    """
    tokens = sum(sample_lengths)
    passes = 2 if frozen else 3
    matrices = 2.0 * passes * layer_weights(config) * tokens
    # Scores and their product with the values: 2 x 2 x width x l^2 a layer, half of it under the causal mask; twice
    # more backward.
    width = config.num_attention_heads * config.head_dim
    attention = 6.0 * config.num_hidden_layers * width * float(sum(length * length for length in sample_lengths))
    head = 2.0 * learnt * config.hidden_size * (2 * config.vocab_size + trained_head_rows)
    return matrices + attention + head
