"""Item decoding beside the bare prefill, and beside generate(num_beams=…): seconds, and users a second.

    python scripts/perf/decode.py                                # CPU: 6 layers x 256, batch 8, 512 tokens
    python scripts/perf/decode.py --vocabularies small --beams 32 --generate
    python scripts/perf/decode.py --device cuda --size 1.7B --prompt 2048 --batch 16 --beams 32 128 512 \\
        --vocabularies qwen3

The bare prefill is the model on the prompts, keeping its cache, with the logits of the last position: nothing that
decodes can do less. Sides take turns in one process; a ratio is the median over the rounds of that round's ratio.
`generate` is slow and runs once, constrained by prefix_allowed_tokens_fn to the same catalogue. Weights are random,
items are drawn evenly.
Beside the times stand the products that each side's matrices take (counted, not measured).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import (
    COUNT,
    SIZES,
    ArgumentParser,
    add_clock,
    add_numbers,
    in_turns,
    medians,
    print_heads,
    print_row,
    spent,
)

from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.items.item import NORMALIZE
from onerec.qwen3 import layer_weights
from onerec.sid import SidSpec

# Text tokens before the itemic ones, codes a layer, items. `qwen3` is Qwen3's own vocabulary with OneRec's codebooks.
VOCABULARIES = {"small": (4096, 256, 20_000), "qwen3": (151_669, 8192, 200_000)}
PREFILL = "prefill"
Side = tuple[int, str]  # beams and what their scores are normalised over; of the prefill (0, "")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--vocabularies", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES))
    parser.add_argument("--size", choices=SIZES, default="small", help="the model's shape (small)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    add_numbers(parser, batch=(8, "prompts at a time"), prompt=(512, "tokens of a prompt"), repeats=(5, "rounds"))
    parser.add_argument("--beams", type=COUNT, nargs="+", default=[32, 256], help="beam widths")
    parser.add_argument("--generate", action="store_true", help="generate(num_beams=…) of the first width too: minutes")
    add_clock(parser)
    return parser.parse_args()


def sides(beams: list[int]) -> dict[str, Side]:
    """What is compared, by name; the prefill first."""
    return {PREFILL: (0, "")} | {f"beam {width}, {n}": (width, n) for width in beams for n in NORMALIZE}


class World:
    """A random model, prompts and a catalogue for one vocabulary."""

    def __init__(self, args: argparse.Namespace, vocabulary: str) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from onerec.items.model import ItemModel

        text, codes, items = VOCABULARIES[vocabulary]
        self.args, self.torch = args, torch
        self.spec = SidSpec((codes,) * 3, first_id=text)
        rng = np.random.default_rng(0)
        drawn = rng.integers(0, codes, (items, 3)).astype(np.int32)
        self.index = ItemIndex(np.arange(items), drawn, self.spec)
        torch.manual_seed(0)
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        shape = dataclasses.asdict(SIZES[args.size]) | {"vocab_size": self.spec.end_id + 1}
        config = Qwen3Config(**shape, max_position_embeddings=args.prompt + 16)
        self.model = Qwen3ForCausalLM(config).to(args.device, dtype).eval()
        prompts = rng.integers(0, text, (args.batch, args.prompt - 1)).tolist()
        self.ids = torch.tensor([[*prompt, self.spec.begin_id] for prompt in prompts], device=args.device)
        self.engine = ItemModel.of(self.model, self.spec)

    def run(self, side: Side) -> None:
        """The prefill, or item decoding with some beams."""
        beams, normalize = side
        if beams:
            from onerec.items.search import find_items

            find_items(self.engine, self.ids.tolist(), self.index, beams, token_budget=1 << 60, normalize=normalize)
            return
        with self.torch.inference_mode():
            self.model(self.ids, use_cache=True, logits_to_keep=1)

    def generate(self, beams: int) -> Callable[[], None]:
        """A call of generate over the same catalogue."""
        children: dict[tuple[int, ...], set[int]] = {}
        for sid in self.spec.token_ids(self.index.sids).tolist():
            for depth in range(3):
                children.setdefault(tuple(sid[:depth]), set()).add(sid[depth])
        allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        ids, length = self.ids, self.args.prompt
        settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        settings |= {"num_beams": beams, "num_return_sequences": beams, "attention_mask": self.torch.ones_like(ids)}
        follow = {"prefix_allowed_tokens_fn": lambda _, row: allowed[tuple(row[length:].tolist())]}
        return self.torch.inference_mode()(lambda: self.model.generate(ids, **settings, **follow))


def products(args: argparse.Namespace, vocabulary: str, side: Side) -> int:
    """Multiplications of the prefill and, with beams, of item decoding: projections, attention, logits.

    Decoding adds two steps of the beams, and the softmax's denominator of every hypothesis that is extended: a product
    with the whole vocabulary, or with the ``level``'s codes. Causal attention is counted as the half that it needs.
    """
    (text, codes, _), (beams, normalize) = VOCABULARIES[vocabulary], side
    rows, shape = text + 3 * codes + 2, SIZES[args.size]
    token = layer_weights(shape)
    inner = shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim
    prompt = args.prompt * token + inner * args.prompt * (args.prompt + 1)
    if not beams:
        return args.batch * (prompt + shape.hidden_size * rows)
    steps = 2 * beams * (token + 2 * inner * args.prompt)
    head = (1 + 2 * min(beams, codes)) * shape.hidden_size * (rows if normalize == "vocabulary" else codes)
    return args.batch * (prompt + steps + head)


def main() -> None:
    args = parse_args()
    print(f"{args.size}, batch {args.batch}, {args.prompt} tokens, {args.device}")
    print_heads("vocabulary", "side", "seconds", "x prefill", "products, x prefill", "users/s")
    for vocabulary in args.vocabularies:
        world, chosen = World(args, vocabulary), sides(args.beams)
        works = {name: functools.partial(world.run, side) for name, side in chosen.items()}
        seconds = in_turns(works, args.repeats, args.clock)
        for name, middle in medians(seconds).items():
            counted = products(args, vocabulary, chosen[name]) / products(args, vocabulary, chosen[PREFILL])
            times = statistics.median(a / b for a, b in zip(seconds[name], seconds[PREFILL], strict=True))
            users = f"{args.batch / middle:.1f}"
            print_row(vocabulary, name, f"{middle:.3f}", f"{times:.2f}", f"{counted:.2f}", users)
        if args.generate:
            taken = spent(world.generate(args.beams[0]), args.clock)
            times = f"{taken / statistics.median(seconds[PREFILL]):.2f}"
            print_row(
                vocabulary, f"generate, beam {args.beams[0]}", f"{taken:.3f}", times, "—", f"{args.batch / taken:.1f}"
            )


if __name__ == "__main__":
    cli(main)()
