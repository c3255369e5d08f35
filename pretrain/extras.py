"""What a run can add where it is installed: compiled layers, Liger's kernels, Weights & Biases."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path
from typing import Any

from onerec.errors import InputError


def check_extras(args: argparse.Namespace) -> None:
    """Raise `InputError` for a flag whose package is not there."""
    needed = (
        ("--use_liger_kernel", args.use_liger_kernel, "liger_kernel", "liger-kernel"),
        ("--report_to", args.report_to == "wandb", "wandb", "wandb"),
        ("--attn_implementation", args.attn_implementation == "flash_attention_2", "flash_attn", "flash-attn"),
    )  # fmt: skip
    for flag, wanted, module, package in needed:
        if wanted and importlib.util.find_spec(module) is None:
            raise InputError(flag, f"{package} is not installed", f"pip install {package}, or leave it out")


def compile_layers(lm: Any, backend: str = "inductor") -> None:
    """Compile every decoder layer in place; they are alike, so one compilation serves them all, for rows of any length."""
    for layer in lm.model.layers:
        layer.compile(dynamic=True, backend=backend)


def apply_liger(lm: Any) -> None:
    """Liger's kernels for norms, rotary embedding and SwiGLU (arXiv 2410.10989); the loss is `pretrain.loss` already.

    Raises `InputError` for an architecture that Liger does not know, and where there is no GPU.
    """
    import torch
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    if not torch.cuda.is_available():
        raise InputError("--use_liger_kernel", "there is no GPU", "Liger's kernels are Triton's; leave it out")
    _apply_liger_kernel_to_instance(lm, fused_linear_cross_entropy=False, cross_entropy=False)


class WandbWriter:
    """Sends what goes to TensorBoard to Weights & Biases too; project and mode by its own variables (``WANDB_PROJECT`` …)."""

    def __init__(self, output_dir: str | Path, config: dict[str, Any]) -> None:
        import wandb

        self._run = wandb.init(project=os.environ.get("WANDB_PROJECT", "onerec"), dir=str(output_dir), config=config)

    def write(self, values: dict[str, float], step: int) -> None:
        """One log line."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
