"""Shapes of the published Qwen3 models with 3 x 8,192 itemic tokens, and the arithmetic that the planners share.

A shape has the names of a Hugging Face configuration, so that the functions take either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from onerec.errors import InputError
from onerec.model_folder import head_dim

ITEMIC = 3 * 8192 + 2
VOCABULARY = 176_384  # Qwen3's 151,669 tokens and the itemic ones, in multiples of 256
GIB = 2**30
ENGINE_BLOCKS = GIB  # of attention scores and of logits that the item engine holds at a time


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the estimates read of a model's configuration."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    tie_word_embeddings: bool
    head_dim: int = 128
    vocab_size: int = VOCABULARY


QWEN3 = {
    "0.6B": Shape(1024, 28, 16, 8, 3072, True),
    "1.7B": Shape(2048, 28, 16, 8, 6144, True),
    "4B": Shape(2560, 36, 32, 8, 9728, True),
    "8B": Shape(4096, 36, 32, 8, 12288, False),
    "14B": Shape(5120, 40, 40, 8, 17408, False),
    "32B": Shape(5120, 64, 64, 8, 25600, False),
}


def layer_weights(config: Any) -> int:
    """Weights of the matrices of all layers (embedding and head left out)."""
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    return config.num_hidden_layers * config.hidden_size * (heads + 3 * config.intermediate_size)


def table_weights(config: Any) -> int:
    """Weights of the embedding, and of the head where it is not tied."""
    return (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size


def weights(config: Any) -> int:
    """Parameters of all matrices (norms are left out)."""
    return layer_weights(config) + table_weights(config)


def cache_bytes(config: Any) -> int:
    """Bytes of keys and values a token, bfloat16."""
    return 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape of a checked ``config.json`` (`onerec.model_folder.read_config`)."""
    heads = config["num_attention_heads"]
    own = {
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "head_dim": head_dim(config),
    }
    names = (field.name for field in dataclasses.fields(Shape))
    return Shape(**{name: own[name] if name in own else config[name] for name in names})


def engine_bytes(shape: Any, tokens: int, width: int = 2) -> int:
    """Bytes that the item engine (`onerec.items`) takes for batches of ``tokens`` tokens, beams counted.

    Weights once, keys and values of the batch, the inner states of one layer, and its blocks of scores and logits.
    ``width``: bytes of a number, 2 for bfloat16.
    """
    inner = 6 * shape.hidden_size + 3 * shape.intermediate_size
    return width * weights(shape) + width // 2 * tokens * (cache_bytes(shape) + 2 * inner) + ENGINE_BLOCKS


def check_engine_fits(
    path: object,
    shape: Any,
    memory: int,
    tokens: int,
    width: int = 2,
    beside: int = 0,
    right: str = "a smaller model, a smaller batch or a larger GPU",
) -> None:
    """Raise `InputError` where the item engine of the model ``path`` takes more than a GPU's ``memory`` in bytes.

    ``beside``: bytes of vLLM, where it lies there too. The engine is not cut over several GPUs.
    """
    need = engine_bytes(shape, tokens, width)
    if need + beside <= memory:
        return
    held, rest = width * weights(shape), need - width * weights(shape)
    parts = [f"{weights(shape) / 1e9:.2f} B weights of {width} bytes are {held / GIB:.1f}"]
    parts += [f"a batch of {tokens:,} tokens {rest / GIB:.1f}"] + ([f"vLLM {beside / GIB:.1f}"] if beside else [])
    what = f"its item engine does not fit one GPU of {memory / GIB:.1f} GiB ({', '.join(parts)})"
    raise InputError(path, what, right)
