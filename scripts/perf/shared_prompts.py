"""One GRPO update's forward and backward: a group's items as rows, or as a tree that holds their prompt once.

    python scripts/perf/shared_prompts.py                           # CPU: 8 prompts of 256 tokens, 8 items
    python scripts/perf/shared_prompts.py --device cuda --size 1.7B --prompt 1500 --beams 32 --tokens 16384 \\
        --sides trees packed packed_answers

Sides: ``trees`` as GRPO computes them; ``rows`` padded to the longest, by sdpa, as verl does without flash attention;
``packed`` one row after the other without padding, by PyTorch's flash attention for packed rows, the head on every
token, as verl does with it (a GPU); ``packed_answers`` the same with the head behind the answers only. Each in
micro-batches of --tokens tokens. All give the log-probability of every answer token and a gradient; they are compared
before anything is timed. They take turns in one process; a ratio is the median over the rounds of that round's ratio
to the first side.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import (
    SIZES,
    ArgumentParser,
    add_numbers,
    add_size_and_device,
    in_turns,
    medians,
    print_heads,
    print_row,
    qwen3,
    range_of,
    ratios,
)

from onerec.cli import cli
from pretrain import attention
from verl_rl.shared_prompts import build, gather

ANSWER = 5  # tokens of an item with begin and end; a third of the items share their first code
Rows = tuple[list[torch.Tensor], list[torch.Tensor]]


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_size_and_device(parser, "toy")
    add_numbers(
        parser,
        batch=(8, "prompts, of which half are three quarters as long"),
        prompt=(256, "tokens of a prompt"),
        beams=(8, "items a prompt"),
        tokens=(1 << 20, "of a micro-batch at most; a group is never split as a tree, a row never"),
        repeats=(5, "rounds"),
    )
    text = "the first is what the others are compared with"
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["trees", "rows"], help=text)
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing, as verl trains")
    return parser.parse_args()


def make_rows(args: argparse.Namespace) -> Rows:
    """Prompts and answers of every row, int64, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    prompts, answers = [], []
    for i in range(args.batch):
        length = args.prompt if i % 2 == 0 else args.prompt * 3 // 4
        prompt = torch.randint(SIZES[args.size].vocab_size, (length,), generator=generator)
        for j in range(args.beams):
            answer = torch.randint(SIZES[args.size].vocab_size, (ANSWER,), generator=generator)
            answer[0] = 1
            answer[1] = 2 if j % 3 == 0 else answer[1]
            prompts.append(prompt)
            answers.append(answer)
    return prompts, answers


def as_rows(model: Any, prompts: list[torch.Tensor], answers: list[torch.Tensor]) -> torch.Tensor:
    """Log-probability of every answer token, a padded row an item."""
    whole = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True).to(model.device)
    lengths = torch.tensor([len(row) for row in whole], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    found = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        scores = logits[i, len(prompt) - 1 : len(prompt) - 1 + len(answer)].float().log_softmax(-1)
        found.append(scores.gather(1, answer.to(ids.device)[:, None])[:, 0])
    return torch.cat(found)


def as_trees(model: Any, prompts: list[torch.Tensor], answers: list[torch.Tensor]) -> torch.Tensor:
    """The same, every distinct prefix once."""
    trees = build(prompts, answers, pad_id=0, device=model.device)
    inputs = {"input_ids": trees.input_ids, "position_ids": trees.position_ids, "attention_mask": trees.mask}
    logits = model(**inputs, logits_to_keep=trees.keep, use_cache=False).logits
    return gather(logits, trees, entropy=False)[0]


def as_packed(model: Any, prompts: list[torch.Tensor], answers: list[torch.Tensor], answers_only: bool) -> torch.Tensor:
    """The same, rows one after the other without padding."""
    whole = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.cat(whole)[None].to(model.device)
    positions = torch.cat([torch.arange(len(row)) for row in whole])[None].to(model.device)
    lengths = torch.tensor([len(row) for row in whole])
    borders = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int().to(model.device)
    starts = (lengths.cumsum(0) - lengths).tolist()
    rows = zip(starts, prompts, whole, strict=True)
    places = torch.cat([torch.arange(at + len(prompt) - 1, at + len(row) - 1) for at, prompt, row in rows])
    places, longest = places.to(model.device), int(lengths.max())
    packed = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    keep = {"logits_to_keep": places if answers_only else 0, "use_cache": False}
    logits = model(input_ids=ids, position_ids=positions, **packed, **keep).logits[0]
    labels = ids[0].roll(-1)
    if answers_only:
        return -torch.nn.functional.cross_entropy(logits.float(), labels[places], reduction="none")
    return -torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")[places]


SIDES: dict[str, Callable[..., torch.Tensor]] = {
    "trees": as_trees,
    "rows": as_rows,
    "packed": lambda *args: as_packed(*args, answers_only=False),
    "packed_answers": lambda *args: as_packed(*args, answers_only=True),
}


def micro_batches(side: str, rows: Rows, args: argparse.Namespace) -> list[Rows]:
    """Consecutive rows of at most ``--tokens`` tokens as the side counts them; whole groups for trees."""
    step = args.beams if side == "trees" else 1
    parts, first, widths = [], 0, []
    for start in range(0, len(rows[0]), step):
        group = rows[0][start : start + step], rows[1][start : start + step]
        width = build(*group, pad_id=0).input_ids.numel() if side == "trees" else len(group[0][0]) + len(group[1][0])
        cost = [*widths, width]
        # Packed rows have no padding; trees and rows are as wide as the widest.
        total = sum(cost) if side.startswith("packed") else max(cost) * len(cost)
        if widths and total > args.tokens:
            parts.append((first, start))
            first, widths = start, []
        widths.append(width)
    parts.append((first, len(rows[0])))
    return [(rows[0][a:b], rows[1][a:b]) for a, b in parts]


def log_probs(side: str, model: Any, parts: list[Rows]) -> torch.Tensor:
    """Of all answer tokens, float32, without gradients."""
    prepare(side, model)
    with torch.no_grad():
        return torch.cat([SIDES[side](model, *part) for part in parts])


def prepare(side: str, model: Any) -> None:
    """The side's attention."""
    name = attention.PACKED_VARLEN if model.device.type == "cuda" else attention.PACKED_SDPA
    model.set_attn_implementation(name if side.startswith("packed") else "sdpa")


def step(side: str, model: Any, parts: list[Rows]) -> None:
    """A forward and a backward pass over all micro-batches."""
    prepare(side, model)
    model.zero_grad()
    for part in parts:
        SIDES[side](model, *part).sum().backward()


def peak_gib(work: Callable[[], None]) -> str:
    """GiB at the peak of a call on a GPU."""
    if not torch.cuda.is_available():
        return "–"
    torch.cuda.reset_peak_memory_stats()
    work()
    return f"{torch.cuda.max_memory_allocated() / 2**30:.1f}"


def tokens_of(side: str, parts: list[Rows]) -> int:
    """Tokens that a side computes."""
    if side == "trees":
        return sum(build(*part, pad_id=0).input_ids.numel() for part in parts)
    return sum(sum(map(len, part[0] + part[1])) for part in parts)


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    on_gpu = args.device != "cpu"
    with torch.device(args.device):
        model = qwen3(SIZES[args.size], attn_implementation="sdpa")
    model = model.to(torch.bfloat16 if on_gpu else torch.float32).train()
    attention.register("auto", on_gpu)
    if args.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    rows = make_rows(args)
    parts = {side: micro_batches(side, rows, args) for side in args.sides}
    first = args.sides[0]
    expected = log_probs(first, model, parts[first])
    apart = {side: float((log_probs(side, model, parts[side]) - expected).abs().max()) for side in args.sides}
    # Kernels round bfloat16 hidden states differently; an H200 gave 0.11 at 28 layers.
    limit = 0.25 if on_gpu else 1e-3
    if max(apart.values()) > limit:
        raise SystemExit(f"the log-probabilities are {apart} apart, more than {limit}")
    works = {side: lambda side=side: step(side, model, parts[side]) for side in args.sides}
    seconds = in_turns(works, args.repeats)
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(
        f"{name}, torch {torch.__version__}: {args.size}, "
        f"{args.batch} prompts of at most {args.prompt:,} tokens x {args.beams} items, "
        f"micro-batches of {args.tokens:,} tokens"
    )
    heads = ("side", "micro-batches", "tokens computed", "seconds", "times as long", "least to most", "peak GiB")
    print_heads(*heads, "log-probabilities apart")
    for side, middle in medians(seconds).items():
        found = ratios(seconds, side, first)
        times, spread = f"{statistics.median(found):.2f}", range_of(found)
        cells = (side, len(parts[side]), f"{tokens_of(side, parts[side]):,}", f"{middle:.3f}", times, spread)
        print_row(*cells, peak_gib(works[side]), f"{apart[side]:.1e}")


if __name__ == "__main__":
    cli(main)()
