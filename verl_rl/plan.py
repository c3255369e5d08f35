"""Memory of a GRPO run by model size and number of GPUs: an estimate from formulas, nothing measured.

    python plan.py                       # the table of recipe/onerec/PLAN.md
    python plan.py --gpu_memory 40 --tokens 8192 --beams 32 --prompt 4096
    python plan.py --thinking            # vLLM writes thoughts, and the item engine lies beside it

Training, FSDP2 over all GPUs: float32 parameters, gradients and Adam's two moments (16 bytes a parameter, sharded),
one layer gathered in bfloat16, the reference (bfloat16, sharded), activations with recomputation (one hidden state a
layer and token, plus one layer's inner states) and float32 logits with their gradient for the micro-batch's answers; a
group's prompt is computed once (SHARE_PROMPTS=1, the default). Rollout: the item engine on every GPU, with whole
weights in bfloat16 and the keys and values of a batch of prompts and beams; with thinking vLLM too, its weights and the
cache of the prompts in flight over the tensor-parallel group. Both sleep while training runs, so a GPU needs the larger
of the two, and in the change between them the sharded training state beside the rollout's weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, ArgumentParser
from onerec.qwen3 import GIB, QWEN3, Shape, cache_bytes, engine_bytes, layer_weights, weights
from verl_rl.settings import ITEM_TOKENS


def training_gib(shape: Shape, gpus: int, tokens: int, answers: int, reference: bool = True) -> float:
    """GiB a GPU while the actor is updated on micro-batches of ``tokens`` tokens, ``answers`` of them with logits."""
    hidden, layers, vocabulary = shape.hidden_size, shape.num_hidden_layers, shape.vocab_size
    state = weights(shape) * (16 + (2 if reference else 0)) / gpus
    gathered = 2 * 2 * max(layer_weights(shape) // layers, vocabulary * hidden)
    activations = tokens * 2 * (layers * hidden + 8 * hidden + 3 * shape.intermediate_size)
    logits = 2 * 4 * answers * vocabulary
    return (state + gathered + activations + logits) / GIB


def engine_gib(shape: Shape, prompt: int, beams: int, in_flight: int) -> float:
    """GiB of the item engine while it searches ``in_flight`` prompts of ``prompt`` tokens with ``beams`` beams each.

    Two of an item's three levels are fed to the model.
    """
    return engine_bytes(shape, min(ITEM_TOKENS, in_flight * (prompt + 2 * beams))) / GIB


def thinking_gib(shape: Shape, tensor_parallel: int, prompt: int, in_flight: int) -> float:
    """GiB a GPU of vLLM while it writes thoughts behind ``in_flight`` prompts; ``prompt`` tokens, thought counted."""
    return (2 * weights(shape) + in_flight * prompt * cache_bytes(shape)) / tensor_parallel / GIB


def sync_gib(shape: Shape, gpus: int, tensor_parallel: int = 0) -> float:
    """GiB a GPU while weights are sent: the sharded state, the engine's weights, and one bucket of 2 GiB.

    ``tensor_parallel``: of vLLM, whose weights come too; 0 without one.
    """
    served = 2 * weights(shape) * (1 + (1 / tensor_parallel if tensor_parallel else 0))
    return (weights(shape) * 18 / gpus + served) / GIB + 2


def rollout_gib(shape: Shape, tensor_parallel: int, args: argparse.Namespace) -> float:
    """GiB a GPU while rolling out; ``tensor_parallel`` 0: without vLLM."""
    engine = engine_gib(shape, args.prompt, args.beams, args.in_flight)
    return engine + (thinking_gib(shape, tensor_parallel, args.prompt, args.in_flight) if tensor_parallel else 0)


def needed_gib(shape: Shape, gpus: int, tensor_parallel: int, args: argparse.Namespace) -> float:
    """The largest of a step's parts, GiB a GPU."""
    # An item adds at most three codes and an end to its group's tree; the prompt's last token has logits too.
    items = 4 * args.beams
    group = args.prompt + items
    groups = max(1, args.tokens // group)
    return max(
        training_gib(shape, gpus, max(args.tokens, group), groups * (items + 1)),
        rollout_gib(shape, tensor_parallel, args),
        sync_gib(shape, gpus, tensor_parallel),
    )


def table(args: argparse.Namespace) -> str:
    """Markdown: GiB a GPU by model and number of GPUs, a dash where it does not fit; with thinking also vLLM's TP."""
    lines = [
        f"| Qwen3 | parameters |{' TP |' if args.thinking else ''} "
        + " | ".join(f"{n} GPUs" for n in args.gpus)
        + " |",
        "|---" * (2 + args.thinking + len(args.gpus)) + "|",
    ]
    room = 0.9 * args.gpu_memory
    for name, shape in QWEN3.items():
        # As few GPUs a server as leave the rollout room.
        choices = (1, 2, 4, 8) if args.thinking else (0,)
        tp = next((tp for tp in choices if rollout_gib(shape, tp, args) < room), choices[-1])
        needs = [needed_gib(shape, gpus, tp, args) if gpus >= tp else float("inf") for gpus in args.gpus]
        cells = [f"{tp}"] * args.thinking + [f"{need:.0f}" if need < room else "–" for need in needs]
        lines.append(f"| {name} | {weights(shape) / 1e9:.2f} B | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--gpu_memory", type=POSITIVE, default=80, help="GiB of a GPU; a run may take nine tenths")
    parser.add_argument("--gpus", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="numbers of GPUs")
    parser.add_argument("--tokens", type=COUNT, default=8192, help="MAX_TOKENS_PER_GPU")
    parser.add_argument("--prompt", type=COUNT, default=2560, help="tokens of prompt and thinking")
    parser.add_argument("--beams", type=COUNT, default=32, help="STAGE2_BEAM_SIZE")
    parser.add_argument("--in_flight", type=COUNT, default=32, help="prompts that a server works on at a time")
    parser.add_argument("--thinking", action="store_true", help="ENABLE_THINK: vLLM beside the item engine")
    args = parser.parse_args(argv)
    print("GiB a GPU, estimated (formulas in plan.py), not measured:\n")
    print(table(args))


if __name__ == "__main__":
    cli(main)()
