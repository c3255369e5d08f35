"""Loss curves of one training in float32, in float32 under autocast, and in bfloat16 with float32 masters.

    python experiments/2026-11-28-bfloat16-weights/curves.py <model> <folder of general_text> <results.json>

Autocast is what a GPU's default was; it lives on here alone. Every run is ``train.py``, on the same rows in the same
order for a seed; ``rows 4``: four rows of a quarter of the length are added up in each step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onerec.flags import COUNT, ArgumentParser
from pretrain import train
from pretrain.checkpoint import LOG, VALIDATION_LOG
from pretrain.model import PackedLM

SIDES = (("float32", "fp32"), ("bfloat16, float32 masters", "bf16"), ("autocast", "bf16"))
TAIL = 5  # log lines of ten steps at the end, whose mean is a run's training loss


def autocast() -> None:
    """Weights stay float32, matrix products run in bfloat16."""
    forward = PackedLM.forward

    def cast(self: PackedLM, *args: Any, **inputs: Any) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return forward(self, *args, **inputs)

    PackedLM.forward, PackedLM.halve = cast, lambda self: None


class Float32Products(TorchDispatchMode):
    """Products of bfloat16 matrices by the CPU's float32 ones, rounded: the same numbers, ten times as fast here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        products = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        if func in products and args[0].dtype == torch.bfloat16:
            return func(*(tensor.float() for tensor in args)).bfloat16()
        return func(*args, **(kwargs or {}))


def run(args: argparse.Namespace, precision: str, rows: int, seed: int, output: Path) -> dict[str, Any]:
    flags = {"model_dir": args.model, "dataset_config": "pretrain/examples/dataset_config/toy_general.json"}
    flags |= {"output_dir": output, "precision": precision, "seed": seed, "learning_rate": 4e-3, "logging_per_step": 10}
    flags |= {"num_training_steps": args.steps, "max_length": args.length // rows, "gradient_accumulation_steps": rows}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    sources = [str(args.text / name) for name in ("pretrain", "sft", "heldout")]
    with Float32Products() if precision == "bf16" else contextlib.nullcontext():
        train.main([*given, "--sources", *sources[:2], "--eval_sources", sources[2]])
    curve, held_out = (
        [json.loads(line)["loss"] for line in (output / name).read_text().splitlines()]
        for name in (LOG, VALIDATION_LOG)
    )
    return {"curve": curve, "train": statistics.mean(curve[-TAIL:]), "held out": held_out[-1]}


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=COUNT, default=500)
    parser.add_argument("--length", type=COUNT, default=512, help="tokens of a step")
    parser.add_argument("--seeds", type=COUNT, default=3)
    parser.add_argument("--rows", type=COUNT, nargs="+", default=[1, 4], help="rows of a step")
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision in SIDES:
            if name == "autocast":
                autocast()
            for rows in args.rows:
                side = f"{name}, rows {rows}"
                runs = (run(args, precision, rows, seed, Path(folder, f"{side} {seed}")) for seed in range(args.seeds))
                found[side] = list(runs)
                table = [beside(side, found) for side in found]
                args.out.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


def beside(side: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A row of the table: a side's losses, and how far they are from float32's of the same seeds."""
    both = list(zip(found[side], found[f"float32, rows {side[-1]}"], strict=True))
    pairs = [pair for mine, full in both for pair in zip(mine["curve"], full["curve"], strict=True)]
    row: dict[str, Any] = {"weights": side}
    for kind in ("train", "held out"):
        row[kind] = [round(mine[kind], 4) for mine, _ in both]
        row[f"{kind} - float32"] = [round(mine[kind] - full[kind], 4) for mine, full in both]
    row["largest gap of the curve"] = round(100 * max(abs(mine - full) / full for mine, full in pairs), 2)
    return row


if __name__ == "__main__":
    main()
