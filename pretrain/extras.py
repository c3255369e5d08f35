"""What a run can add to a model: compiled layers, Liger's kernels, dropout."""

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from onerec.errors import InputError


def check_extras(args: argparse.Namespace) -> None:
    """Raise `InputError` for a flag whose package is not there."""
    needed = (
        ("--use_liger_kernel", args.use_liger_kernel, "liger_kernel", "liger-kernel"),
        ("--report_to", args.report_to == "wandb", "wandb", "wandb"),
        ("--attn_implementation", args.attn_implementation == "flash_attention_2", "flash_attn", "flash-attn"),
    )
    for flag, wanted, module, package in needed:
        if wanted and importlib.util.find_spec(module) is None:
            raise InputError(flag, f"{package} is not installed", f"pip install {package}, or leave it out")


def compile_layers(lm: Any, backend: str = "inductor") -> None:
    """Compile every decoder layer in place; they are alike, so one compilation serves them all, for any length."""
    for layer in lm.model.layers:
        layer.compile(dynamic=True, backend=backend)


def apply_liger(lm: Any) -> None:
    """Liger's kernels for norms, rotary embedding and SwiGLU (arXiv 2410.10989); the loss is `pretrain.loss` already.

    Raises `InputError` where there is no GPU.
    """
    import torch
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    if not torch.cuda.is_available():
        raise InputError("--use_liger_kernel", "there is no GPU", "Liger's kernels are Triton's; leave it out")
    _apply_liger_kernel_to_instance(lm, fused_linear_cross_entropy=False, cross_entropy=False)


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
