"""Memory of a GRPO run by model size and number of GPUs: an estimate from formulas, nothing measured.

    python plan.py                       # the table of README.md
    python plan.py --gpu_memory 40 --tokens 8192 --beams 32 --prompt 4096

Training, FSDP2 over all GPUs: float32 parameters, gradients and Adam's two moments (16 bytes a parameter, sharded),
one layer gathered in bfloat16, the reference (bfloat16, sharded), activations with recomputation (one hidden state a
layer and token, plus one layer's inner states) and float32 logits with their gradient for the micro-batch's answers; a
group's prompt is computed once (SHARE_PROMPTS=1, the default). Rollout: bfloat16 weights over the tensor-parallel
group, and the cache of the prompts and beams in flight. verl lets vLLM sleep while training runs, so a GPU needs the
larger of the two, and in the change between them the sharded training state beside vLLM's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, ArgumentParser
from onerec.qwen3 import GIB, QWEN3, Shape, cache_bytes, layer_weights, weights


def training_gib(shape: Shape, gpus: int, tokens: int, answers: int, reference: bool = True) -> float:
    """GiB a GPU while the actor is updated on micro-batches of ``tokens`` tokens, ``answers`` of them with logits."""
    hidden, layers, vocabulary = shape.hidden_size, shape.num_hidden_layers, shape.vocab_size
    state = weights(shape) * (16 + (2 if reference else 0)) / gpus
    gathered = 2 * 2 * max(layer_weights(shape) // layers, vocabulary * hidden)
    activations = tokens * 2 * (layers * hidden + 8 * hidden + 3 * shape.intermediate_size)
    logits = 2 * 4 * answers * vocabulary
    return (state + gathered + activations + logits) / GIB


def rollout_gib(shape: Shape, tensor_parallel: int, prompt: int, beams: int, in_flight: int) -> float:
    """GiB a GPU while rolling out ``in_flight`` prompts of ``prompt`` tokens at a time, each with ``beams`` beams."""
    cache = in_flight * (prompt + 2 * 2 * 16 * beams) * cache_bytes(shape)
    return (2 * weights(shape) + cache) / tensor_parallel / GIB


def sync_gib(shape: Shape, gpus: int, tensor_parallel: int) -> float:
    """GiB a GPU while weights go to vLLM: the sharded state beside vLLM's weights and one bucket of 2 GiB."""
    return (weights(shape) * 18 / gpus + 2 * weights(shape) / tensor_parallel) / GIB + 2


def needed_gib(shape: Shape, gpus: int, tensor_parallel: int, args: argparse.Namespace) -> float:
    """The largest of a step's parts, GiB a GPU."""
    # An item adds at most three codes and an end to its group's tree; the prompt's last token has logits too.
    items = 4 * args.beams
    group = args.prompt + items
    groups = max(1, args.tokens // group)
    return max(
        training_gib(shape, gpus, max(args.tokens, group), groups * (items + 1)),
        rollout_gib(shape, tensor_parallel, args.prompt, args.beams, args.in_flight),
        sync_gib(shape, gpus, tensor_parallel),
    )


def table(args: argparse.Namespace) -> str:
    """Markdown: for every size its tensor parallelism, and GiB a GPU by the number of GPUs; a dash: it does not fit."""
    lines = [
        "| Qwen3 | parameters | TP | " + " | ".join(f"{n} GPUs" for n in args.gpus) + " |",
        "|---" * (3 + len(args.gpus)) + "|",
    ]
    for name, shape in QWEN3.items():
        rollout = {tp: rollout_gib(shape, tp, args.prompt, args.beams, args.in_flight) for tp in (1, 2, 4, 8)}
        tp = next((tp for tp, gib in rollout.items() if gib < args.gpu_memory / 2), 8)
        cells = []
        for gpus in args.gpus:
            need = needed_gib(shape, gpus, tp, args) if gpus >= tp else float("inf")
            cells.append(f"{need:.0f}" if need < 0.9 * args.gpu_memory else "–")
        lines.append(f"| {name} | {weights(shape) / 1e9:.2f} B | {tp} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--gpu_memory", type=POSITIVE, default=80, help="GiB of a GPU; a run may take nine tenths")
    parser.add_argument("--gpus", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="numbers of GPUs")
    parser.add_argument("--tokens", type=COUNT, default=8192, help="MAX_TOKENS_PER_GPU")
    parser.add_argument("--prompt", type=COUNT, default=2560, help="tokens of prompt and thinking")
    parser.add_argument("--beams", type=COUNT, default=32, help="STAGE2_BEAM_SIZE")
    parser.add_argument("--in_flight", type=COUNT, default=32, help="prompts that a server works on at a time")
    args = parser.parse_args(argv)
    print("GiB a GPU, estimated (formulas in plan.py), not measured:\n")
    print(table(args))


if __name__ == "__main__":
    cli(main)()
