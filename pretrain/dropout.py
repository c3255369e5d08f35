"""Dropout for a model whose configuration has none: Qwen3 was pretrained without, small data trained for many epochs want it.

After Vaswani et al. 2017 (arXiv 1706.03762, section 5.4): on the embedded tokens and on the output of every attention and MLP
block before it is added to the residual stream; on attention probabilities apart. It lives in hooks and in the loaded modules
alone, so that neither configuration nor weights of a saved checkpoint know of it, and it is off outside training.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn


def _drop(rate: float) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):  # attention gives (output, probabilities)
            return (F.dropout(output[0], rate), *output[1:])
        return F.dropout(output, rate)

    return hook


def add_dropout(lm: Any, rate: float, attention_rate: float) -> None:
    """Put dropout into a Hugging Face decoder in place; rates are probabilities from 0 to below 1, 0 leaves it as it is.

    Draws come from torch's global generator. Where the embedding is not called as a module (stage 1), its output is left alone.
    """
    decoder = lm.model
    if rate:
        blocks = [block for layer in decoder.layers for block in (layer.self_attn, layer.mlp)]
        for module in (decoder.embed_tokens, *blocks):
            module.register_forward_hook(_drop(rate))
    for layer in decoder.layers:
        layer.self_attn.attention_dropout = attention_rate or layer.self_attn.attention_dropout
