"""Item decoding beside the bare prefill and beside generate(num_beams=…): time, memory, and users a second.

    python scripts/perf/decode.py                                # CPU: 6 layers x 256, batch 8, 512 tokens, two vocabularies
    python scripts/perf/decode.py --vocabularies small --beams 32 --no_generate
    python scripts/perf/decode.py --device cuda --layers 28 --hidden 2048 --intermediate 6144 --heads 16 --kv_heads 8 \\
        --head_dim 128 --prompt 2048 --batch 16 --beams 32 128 512 --vocabularies qwen3      # OneRec-1.7B's shape, random weights

The bare prefill is the model on the prompts, keeping its cache, with the logits of the last position: nothing that decodes can do
less. All sides run in one process, taking turns; a ratio is the median over the rounds of that round's ratio. `generate` is
slow and runs in the first round only, constrained by prefix_allowed_tokens_fn to the same catalogue. Memory: each side in a
process of its own, its peak above the loaded model. Weights are random, items are drawn evenly. Beside the times stand the products
that each side's matrices take (counted, not measured): what a side costs at the prefill's own speed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT

sys.path.insert(0, str(ROOT))
from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.flags import COUNT, SEED, ArgumentParser
from onerec.items.decode import NORMALIZE, decode_items
from onerec.run import write_json
from onerec.sid import SidSpec

# Text tokens before the itemic ones, codes a layer, items. `qwen3` is Qwen3's own vocabulary with OneRec's codebooks.
VOCABULARIES = {"small": (4096, 256, 20_000), "qwen3": (151_669, 8192, 200_000)}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--vocabularies", nargs="+", choices=VOCABULARIES, default=list(VOCABULARIES))
    for name, value, text in (
        ("layers", 6, "transformer layers"),
        ("hidden", 256, "width"),
        ("intermediate", 768, "width of the MLP"),
        ("heads", 4, "query heads"),
        ("kv_heads", 2, "key and value heads"),
        ("head_dim", 64, "width of a head"),
        ("batch", 8, "prompts at a time"),
        ("prompt", 512, "tokens of a prompt"),
        ("repeats", 5, "rounds"),
        ("seed", 0, "of weights, prompts and items"),
    ):
        taken = SEED if name == "seed" else COUNT
        parser.add_argument(f"--{name}", type=taken, default=value, help=f"{text} (default {value})")
    parser.add_argument("--beams", type=COUNT, nargs="+", default=[32, 256], help="beam widths")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: the process' processor time, for a machine that others use too (with OMP_NUM_THREADS=1)",
    )  # fmt: skip
    parser.add_argument("--no_generate", action="store_true", help="leave out generate, which takes minutes")
    parser.add_argument("--no_memory", action="store_true", help="leave out the peaks, a process a side")
    parser.add_argument("--output", type=Path, default=None, help="JSON file of the figures")
    parser.add_argument("--side", default=None, help=argparse.SUPPRESS)  # one side's peak memory, in a child
    return parser.parse_args()


class World:
    """A random model, prompts and a catalogue for one vocabulary."""

    def __init__(self, args: argparse.Namespace, vocabulary: str) -> None:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        text, codes, items = VOCABULARIES[vocabulary]
        self.args, self.torch = args, torch
        self.clock = time.process_time if args.clock == "cpu" else time.perf_counter
        self.spec = SidSpec((codes,) * 3, first_id=text)
        rng = np.random.default_rng(args.seed)
        drawn = rng.integers(0, codes, (items, 3)).astype(np.int32)
        self.index = ItemIndex(np.arange(items), drawn, self.spec)
        torch.manual_seed(args.seed)
        config = Qwen3Config(
            vocab_size=self.spec.end_id + 1, hidden_size=args.hidden, intermediate_size=args.intermediate,
            num_hidden_layers=args.layers, num_attention_heads=args.heads, num_key_value_heads=args.kv_heads,
            head_dim=args.head_dim, max_position_embeddings=args.prompt + 16, tie_word_embeddings=True,
        )  # fmt: skip
        dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
        self.model = Qwen3ForCausalLM(config).to(args.device, dtype).eval()
        self.prompts = rng.integers(0, text, (args.batch, args.prompt - 1)).tolist()
        self.ids = torch.tensor([[*p, self.spec.begin_id] for p in self.prompts], device=args.device)

    def prefill(self) -> None:
        with self.torch.inference_mode():
            self.model(self.ids, use_cache=True, logits_to_keep=1)

    def decode(self, beams: int, normalize: str) -> None:
        decode_items(
            self.model,
            self.prompts,
            self.index,
            self.spec,
            beams,
            token_budget=1 << 60,
            normalize=normalize,
        )

    def generate(self, beams: int) -> None:
        children: dict[tuple[int, ...], set[int]] = {}
        for sid in self.spec.token_ids(self.index.sids).tolist():
            for depth in range(3):
                children.setdefault(tuple(sid[:depth]), set()).add(sid[depth])
        allowed = {prefix: sorted(tokens) for prefix, tokens in children.items()}
        length = self.args.prompt
        self.generate_start = self.clock()
        with self.torch.inference_mode():
            self.model.generate(
                self.ids, attention_mask=self.torch.ones_like(self.ids), max_new_tokens=3, do_sample=False,
                num_beams=beams, num_return_sequences=beams, pad_token_id=0, eos_token_id=None,
                prefix_allowed_tokens_fn=lambda _, ids: allowed[tuple(ids[length:].tolist())],
            )  # fmt: skip

    def seconds(self, run: Callable[[], None]) -> float:
        """Seconds of one call, the device waited for; generate's own preparation is not counted."""
        self.generate_start = start = self.clock()
        run()
        if self.args.device != "cpu":
            self.torch.cuda.synchronize()
        return self.clock() - max(start, self.generate_start)


def products(args: argparse.Namespace, vocabulary: str, beams: int = 0, normalize: str = "") -> int:
    """Multiplications of the prefill and, with ``beams``, of item decoding: projections, attention, logits.

    Decoding adds two steps of the beams, and the softmax's denominator of every hypothesis that is extended: a product with the
    whole vocabulary, or with the ``level``'s codes. Causal attention is counted as the half that it needs.
    """
    text, codes, _ = VOCABULARIES[vocabulary]
    rows = text + 3 * codes + 2
    inner = args.heads * args.head_dim
    token = 2 * args.hidden * (inner + args.kv_heads * args.head_dim) + 3 * args.hidden * args.intermediate
    prompt = args.prompt * token + inner * args.prompt * (args.prompt + 1)
    total = args.batch * (args.layers * prompt + args.hidden * rows)
    if not beams:
        return total
    steps = 2 * beams * args.layers * (token + 2 * inner * args.prompt)
    extended = 1 + 2 * min(beams, codes)
    head = extended * args.hidden * (rows if normalize == "vocabulary" else codes)
    return total + args.batch * (steps + head - args.hidden * rows)


def sides(world: World, args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What is compared, by name; the prefill first."""
    runs: dict[str, Callable[[], None]] = {"prefill": world.prefill}
    for beams in args.beams:
        for normalize in NORMALIZE:
            runs[f"beam {beams}, {normalize}"] = lambda b=beams, n=normalize: world.decode(b, n)
    return runs


def compare(args: argparse.Namespace, vocabulary: str) -> dict[str, Any]:
    """Median seconds of every side, and its ratio to the prefill's of the same round."""
    world = World(args, vocabulary)
    runs = sides(world, args)
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    if not args.no_generate:
        times["generate, beam " + str(args.beams[0])] = [world.seconds(lambda: world.generate(args.beams[0]))]
    for _ in range(args.repeats):
        for name, run in runs.items():
            times[name].append(world.seconds(run))
    bare = times["prefill"]
    result: dict[str, Any] = {}
    for name, values in times.items():
        base = bare if len(values) == len(bare) else [statistics.median(bare)]
        result[name] = {
            "seconds": statistics.median(values),
            "times_prefill": statistics.median(v / b for v, b in zip(values, base, strict=True)),
            "users_per_second": args.batch / statistics.median(values),
        }
    for name in ("prefill", *(f"beam {beams}, {n}" for beams in args.beams for n in NORMALIZE)):
        beams, _, normalize = name.removeprefix("beam ").partition(", ")
        counted = products(args, vocabulary, int(beams), normalize) if normalize else products(args, vocabulary)
        result[name]["products_times_prefill"] = counted / products(args, vocabulary)
    return result


def peak_above_model(args: argparse.Namespace, vocabulary: str, side: str) -> float:
    """MiB that one side takes at its peak above the loaded model, in a process of its own."""
    argv = [sys.executable, __file__, *sys.argv[1:], "--vocabularies", vocabulary, "--side", side]
    # A fixed threshold: freed blocks go back to the kernel at once, so that the peak is the program's and not the allocator's.
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout
    return float(output.split()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """The child's part of `peak_above_model`."""
    world = World(args, args.vocabularies[0])
    run = sides(world, args)[args.side]
    if args.device != "cpu":
        world.torch.cuda.reset_peak_memory_stats()
        before = world.torch.cuda.memory_allocated()
        run()
        print((world.torch.cuda.max_memory_allocated() - before) / 2**20)
        return
    # A short call first: libraries load, thread pools start. Writing 5 sets the kernel's high-water mark back (proc(5)).
    ids, prompts, world.ids, world.prompts = (
        world.ids,
        world.prompts,
        world.ids[:1, :8],
        [world.prompts[0][:7]],
    )
    run()
    world.ids, world.prompts = ids, prompts
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    print((_status("VmHWM") - before) / 1024)


def _status(key: str) -> int:
    """KiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def main() -> None:
    args = parse_args()
    if args.side:
        print_peak(args)
        return
    figures: dict[str, Any] = {}
    for vocabulary in args.vocabularies:
        figures[vocabulary] = compare(args, vocabulary)
        memory = not args.no_memory and (args.device != "cpu" or sys.platform == "linux")
        bare = peak_above_model(args, vocabulary, "prefill") if memory else 0.0
        for name, row in figures[vocabulary].items():
            if memory and not name.startswith("generate"):
                row["peak_mib"] = bare if name == "prefill" else peak_above_model(args, vocabulary, name)
                row["peak_times_prefill"] = row["peak_mib"] / bare
    print(f"{args.layers} layers x {args.hidden}, batch {args.batch}, {args.prompt} tokens, {args.device}")
    print("| vocabulary | side | seconds | x prefill | products, x prefill | users/s | peak MiB | x prefill |")
    print("|---|---|---|---|---|---|---|---|")
    for vocabulary, rows in figures.items():
        for name, row in rows.items():
            peak = f"{row['peak_mib']:.0f} | {row['peak_times_prefill']:.2f}" if "peak_mib" in row else "— | —"
            counted = f"{row['products_times_prefill']:.2f}" if "products_times_prefill" in row else "—"
            print(
                f"| {vocabulary} | {name} | {row['seconds']:.3f} | {row['times_prefill']:.2f} | {counted} "
                f"| {row['users_per_second']:.1f} | {peak} |"
            )
    if args.output:
        config = {key: value for key, value in vars(args).items() if key not in ("output", "side")}
        write_json(args.output, {"config": config, "figures": figures})


if __name__ == "__main__":
    cli(main)()
