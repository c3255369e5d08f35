"""Liger's fused norms, rotary embedding and SwiGLU (arXiv 2410.10989), where they are installed and give the same.

Plain, each of these passes over its tensors several times, and on a GPU that takes longer than the matrix products.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from typing import Any

import torch

from onerec.errors import reason
from onerec.run import get_logger

log = get_logger("train")
_CLOSE = 0.03  # of the largest number: bfloat16 holds 0.004, and a layer adds up a few of them
_PARTS = {"rms_norm": True, "rope": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def fuse(lm: Any, device: torch.device) -> str:
    """Put Liger's kernels into a bfloat16 LM on ``device``, a GPU, in place; returns what is then used, for the log.

    They stay out where the package is absent, does not know the architecture, or gives other numbers in one layer,
    forward and backward.
    """
    if device.type != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return "plain"
    try:
        kernels = importlib.import_module("liger_kernel.transformers")
        apply = getattr(kernels, f"apply_liger_kernel_to_{lm.config.model_type}", None)
        if apply is None or not same(lm, apply, device):
            return "plain"
        apply(**_PARTS, model=lm)
    except Exception as error:  # a compiler of kernels has many
        log.warning(f"Liger's kernels do not run here, so layers stay plain: {reason(error)}")
        return "plain"
    return "Liger"


def same(lm: Any, apply: Any, device: torch.device) -> bool:
    """Whether a layer of the LM's shape gives the same output and gradients with Liger's kernels as without."""
    plain = one_layer(lm, device)
    module = sys.modules[type(lm).__module__]
    before = module.apply_rotary_pos_emb
    wanted = numbers(plain)
    try:
        apply(**_PARTS, model=plain)
        found = numbers(plain)
    except Exception:
        module.apply_rotary_pos_emb = before
        raise
    for name, tensor in wanted.items():
        apart = float((found[name] - tensor).abs().max() / tensor.abs().max())
        if not apart < _CLOSE:
            log.warning(f"Liger's kernels give another {name} ({apart:.2g} apart), so layers stay plain")
            module.apply_rotary_pos_emb = before
            return False
    return True


def one_layer(lm: Any, device: torch.device) -> Any:
    """A random LM of one layer and few tokens with the LM's widths, in bfloat16."""
    config = copy.deepcopy(lm.config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 64, None
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        layer = type(lm)(config)
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16()
    return layer


def numbers(lm: Any) -> dict[str, torch.Tensor]:
    """The last hidden states of a short row, and the gradients of its layer's weights, float32."""
    lm.zero_grad()
    ids = torch.arange(48, device=lm.device)[None] % lm.config.vocab_size
    hidden = lm.model(input_ids=ids, use_cache=False).last_hidden_state
    hidden.float().square().mul(torch.linspace(0, 1, hidden.shape[-1], device=lm.device)).sum().backward()
    gradients = {name: p.grad.float() for name, p in lm.model.named_parameters() if p.grad is not None}
    return {"output": hidden.detach().float()} | {f"gradient of {name}": grad for name, grad in gradients.items()}
