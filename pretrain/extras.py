"""What a run can add to a model: compiled layers, recomputation, dropout."""

from __future__ import annotations

import functools
from typing import Any

from pretrain.memory import by_layer


def compile_layers(lm: Any) -> None:
    """Compile every decoder layer in place; they are alike, so one compilation serves them all, for any length."""
    for layer in lm.model.layers:
        layer.compile(dynamic=True)


def recompute(lm: Any, what: str) -> None:
    """Have the backward pass compute again instead of keeping: ``full`` layers, their ``attention``, or ``none``.

    Full takes a third more time for one layer's input a layer (Chen et al. 2016, arXiv 1604.06174); attention takes
    less than a tenth for what stands between its input and its output. ``full:3``, ``attention:3``: see `by_layer`.
    """
    kinds = by_layer(what, len(lm.model.layers))
    if "full" in kinds:
        lm.gradient_checkpointing_enable()
    for layer, kind in zip(lm.model.layers, kinds, strict=True):
        layer.gradient_checkpointing = kind == "full"
        if kind == "attention":
            layer.self_attn.forward = _recomputed(layer.self_attn)


def _recomputed(module: Any) -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    forward = module.forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if module.training and torch.is_grad_enabled():
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return forward(*args, **kwargs)

    return run


def add_dropout(lm: Any, rate: float, attention_rate: float) -> None:
    """Put dropout into a Hugging Face decoder in place; rates are probabilities from 0 to below 1, 0 changes nothing.

    After Vaswani et al. 2017 (arXiv 1706.03762, section 5.4): on the embedded tokens and on the output of every
    attention and MLP block before it is added to the residual stream; on attention probabilities apart. It lives in
    hooks alone, so no checkpoint knows of it, and it is off outside training. Where the embedding is not called as a
    module (stage 1), its output is left alone.
    """
    import torch.nn.functional as F

    def drop(module: Any, args: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):  # attention gives (output, probabilities)
            return (F.dropout(output[0], rate), *output[1:])
        return F.dropout(output, rate)

    layers = lm.model.layers
    if rate:
        for module in (lm.model.embed_tokens, *(block for layer in layers for block in (layer.self_attn, layer.mlp))):
            module.register_forward_hook(drop)
    for layer in layers:
        layer.self_attn.attention_dropout = attention_rate or layer.self_attn.attention_dropout
