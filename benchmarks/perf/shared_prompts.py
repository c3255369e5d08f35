"""One GRPO update's forward and backward: a group's items as rows, or as a tree that holds their prompt once.

    python benchmarks/perf/shared_prompts.py                           # CPU: 3 layers x 128, 8 prompts of 256 tokens, 8 items
    python benchmarks/perf/shared_prompts.py --beams 32 --prompt 1024
    python benchmarks/perf/shared_prompts.py --device cuda --layers 28 --hidden 2048 --intermediate 6144 --heads 16 --kv_heads 8 \\
        --head_dim 128 --vocabulary 176247 --prompt 2048 --batch 1 --beams 32     # OneRec-1.7B's shape, random weights

Rows are padded to the longest and attend by sdpa, as verl computes them without flash attention. Both sides give the
log-probability of every answer token and a gradient; they are compared before anything is timed. They take turns in one
process; the ratio is the median over the rounds of that round's ratio.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT

sys.path.insert(0, str(ROOT))
from verl_rl.shared_prompts import build, gather


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value, text in (
        ("layers", 3, "transformer layers"),
        ("hidden", 128, "width"),
        ("intermediate", 384, "width of the MLP"),
        ("heads", 4, "query heads"),
        ("kv_heads", 2, "key and value heads"),
        ("head_dim", 32, "width of a head"),
        ("vocabulary", 1500, "tokens"),
        ("batch", 8, "prompts, of which half are three quarters as long"),
        ("prompt", 256, "tokens of a prompt"),
        ("beams", 8, "items a prompt"),
        ("answer", 6, "tokens of an item with begin and end; a third of the items share their first code"),
        ("repeats", 5, "rounds"),
        ("seed", 0, "of weights and tokens"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


def make_rows(args: argparse.Namespace) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Prompts and answers of every row, int64, on the device."""
    generator = torch.Generator().manual_seed(args.seed)
    prompts, answers = [], []
    for i in range(args.batch):
        length = args.prompt if i % 2 == 0 else args.prompt * 3 // 4
        prompt = torch.randint(args.vocabulary, (length,), generator=generator)
        for j in range(args.beams):
            answer = torch.randint(args.vocabulary, (args.answer,), generator=generator)
            answer[0] = 1
            answer[1] = 2 if j % 3 == 0 else answer[1]
            prompts.append(prompt.to(args.device))
            answers.append(answer.to(args.device))
    return prompts, answers


def as_rows(model: Any, prompts: list[torch.Tensor], answers: list[torch.Tensor]) -> torch.Tensor:
    """Log-probability of every answer token, a padded row an item."""
    whole = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
    lengths = torch.tensor([len(row) for row in whole], device=ids.device)
    mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    found = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        scores = logits[i, len(prompt) - 1 : len(prompt) - 1 + len(answer)].float().log_softmax(-1)
        found.append(scores.gather(1, answer[:, None])[:, 0])
    return torch.cat(found)


def as_trees(model: Any, prompts: list[torch.Tensor], answers: list[torch.Tensor]) -> torch.Tensor:
    """The same, every distinct prefix once."""
    trees = build(prompts, answers, pad_id=0)
    logits = model(
        input_ids=trees.input_ids, position_ids=trees.position_ids, attention_mask=trees.mask,
        logits_to_keep=trees.keep, use_cache=False,
    ).logits  # fmt: skip
    return gather(logits, trees, entropy=False)[0]


def timed(side: Callable[[], torch.Tensor], model: Any, device: str) -> float:
    """Seconds of a forward and a backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    side().mean().backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    args = parse_args()
    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=args.intermediate,
        num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim, attn_implementation="sdpa",
    )  # fmt: skip
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    model = Qwen3ForCausalLM(config).to(args.device, dtype)
    rows = make_rows(args)
    sides = {"rows": lambda: as_rows(model, *rows), "trees": lambda: as_trees(model, *rows)}
    with torch.no_grad():
        apart = float((sides["rows"]() - sides["trees"]()).abs().max())
    limit = 0.1 if dtype == torch.bfloat16 else 1e-3
    if apart > limit:
        raise SystemExit(f"the log-probabilities are {apart:.2g} apart, more than {limit}")
    for side in sides.values():  # the first of each also plans its kernels
        timed(side, model, args.device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, side in sides.items():
            seconds[name].append(timed(side, model, args.device))
    ratios = [rows / trees for rows, trees in zip(seconds["rows"], seconds["trees"], strict=True)]
    count = sum(len(prompt) + len(answer) for prompt, answer in zip(*rows, strict=True))
    columns = build(*rows, pad_id=0).input_ids.numel()
    print(
        f"{args.batch} prompts x {args.beams} items: rows {statistics.median(seconds['rows']):.3f} s ({count:,} tokens), trees "
        f"{statistics.median(seconds['trees']):.3f} s ({columns:,} columns), {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {args.repeats} rounds); log-probabilities at most {apart:.1e} apart"
    )


if __name__ == "__main__":
    main()
