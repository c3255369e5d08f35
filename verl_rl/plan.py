"""Memory of a GRPO run by model size and number of GPUs: an estimate from formulas, nothing measured.

    python plan.py                       # the table of README.md
    python plan.py --gpu_memory 40 --tokens 8192 --beams 32 --prompt 4096

Training, FSDP2 over all GPUs: float32 parameters, gradients and Adam's two moments (16 bytes a parameter, sharded), one layer
gathered in bfloat16, the reference (bfloat16, sharded), activations with recomputation (one hidden state a layer and token,
plus one layer's inner states) and float32 logits with their gradient for the micro-batch's answers; a group's prompt is computed
once (SHARE_PROMPTS=1, the default). Rollout: bfloat16 weights over the tensor-parallel group, and the cache of the prompts and
beams in flight. verl lets vLLM sleep while training runs, so a GPU needs the larger of the two, and in the change between them
the sharded training state beside vLLM's weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, ArgumentParser

GIB = 2**30
# Three layers of 8,192 codes, begin and end on Qwen3's 151,669 tokens, in rows of 256.
ITEMIC_ROWS = 176_384


@dataclasses.dataclass(frozen=True)
class Size:
    """A Qwen3 of the published family, by its configuration."""

    name: str
    hidden: int
    layers: int
    inner: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 128
    vocab: int = ITEMIC_ROWS

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.inner

    @property
    def parameters(self) -> int:
        """Parameters of the model with its itemic vocabulary."""
        return self.layers * self.layer_parameters + self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values a token, bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


SIZES = (
    Size("0.6B", 1024, 28, 3072, 16, 8, True),
    Size("1.7B", 2048, 28, 6144, 16, 8, True),
    Size("4B", 2560, 36, 9728, 32, 8, True),
    Size("8B", 4096, 36, 12288, 32, 8, False),
    Size("14B", 5120, 40, 17408, 40, 8, False),
    Size("32B", 5120, 64, 25600, 64, 8, False),
)


def training_gib(size: Size, gpus: int, tokens: int, answers: int, reference: bool = True) -> float:
    """GiB a GPU while the actor is updated on micro-batches of ``tokens`` tokens, ``answers`` of them with logits."""
    state = size.parameters * (16 + (2 if reference else 0)) / gpus
    gathered = 2 * 2 * max(size.layer_parameters, size.vocab * size.hidden)
    activations = tokens * 2 * (size.layers * size.hidden + 8 * size.hidden + 3 * size.inner)
    logits = 2 * 4 * answers * size.vocab
    return (state + gathered + activations + logits) / GIB


def rollout_gib(size: Size, tensor_parallel: int, prompt: int, beams: int, in_flight: int) -> float:
    """GiB a GPU while rolling out ``in_flight`` prompts of ``prompt`` tokens at a time, each with ``beams`` beams."""
    cache = in_flight * (prompt + 2 * 2 * 16 * beams) * size.cache_bytes
    return (2 * size.parameters + cache) / tensor_parallel / GIB


def sync_gib(size: Size, gpus: int, tensor_parallel: int) -> float:
    """GiB a GPU while weights go to vLLM: the sharded state beside vLLM's weights and one bucket of 2 GiB."""
    return (size.parameters * 18 / gpus + 2 * size.parameters / tensor_parallel) / GIB + 2


def needed_gib(size: Size, gpus: int, tensor_parallel: int, args: argparse.Namespace) -> float:
    """The largest of a step's parts, GiB a GPU."""
    # An item adds at most three codes and an end to its group's tree; the prompt's last token has logits too.
    items = 4 * args.beams
    group = args.prompt + items
    groups = max(1, args.tokens // group)
    return max(
        training_gib(size, gpus, max(args.tokens, group), groups * (items + 1)),
        rollout_gib(size, tensor_parallel, args.prompt, args.beams, args.in_flight),
        sync_gib(size, gpus, tensor_parallel),
    )


def table(args: argparse.Namespace) -> str:
    """Markdown: for every size the tensor parallelism, and GiB a GPU for every number of GPUs; a dash where it does not fit."""
    lines = [
        "| Qwen3 | parameters | TP | " + " | ".join(f"{n} GPUs" for n in args.gpus) + " |",
        "|---" * (3 + len(args.gpus)) + "|",
    ]
    for size in SIZES:
        fits = [
            tp
            for tp in (1, 2, 4, 8)
            if rollout_gib(size, tp, args.prompt, args.beams, args.in_flight) < args.gpu_memory / 2
        ]
        tp = fits[0] if fits else 8
        cells = []
        for gpus in args.gpus:
            need = needed_gib(size, gpus, tp, args) if gpus >= tp else float("inf")
            cells.append(f"{need:.0f}" if need < 0.9 * args.gpu_memory else "–")
        lines.append(f"| {size.name} | {size.parameters / 1e9:.2f} B | {tp} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--gpu_memory", type=POSITIVE, default=80, help="GiB of a GPU; a run may take nine tenths")
    parser.add_argument("--gpus", type=COUNT, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=COUNT, default=8192, help="MAX_TOKENS_PER_GPU")
    parser.add_argument("--prompt", type=COUNT, default=2560, help="tokens of prompt and thinking")
    parser.add_argument("--beams", type=COUNT, default=32, help="STAGE2_BEAM_SIZE")
    parser.add_argument("--in_flight", type=COUNT, default=32, help="prompts that a server works on at a time")
    args = parser.parse_args(argv)
    print("GiB a GPU, estimated (formulas in plan.py), not measured:\n")
    print(table(args))


if __name__ == "__main__":
    cli(main)()
