"""Speed of the item stage of a rollout, beside vLLM's own beam search: the same model, prompts, engine and process.

    python scripts/perf/rollout.py --model runs/quickstart/models/sft/hf --rl_data runs/quickstart/output/rl_data/test.parquet \\
        --catalogue runs/quickstart/output/benchmark_data/video_ad_pid2sid.parquet --task video

Three pairs, interleaved, medians of the rounds:
- ``rollout``: an answer without thinking. vLLM writes the whole SID, begin and end included, by ``LLM.beam_search``; two-stage
  rollouts force those and search the codes.
- ``thinking``: the same behind ``--thinking_tokens`` tokens of thinking, which vLLM searches by beams too and two-stage
  rollouts sample once.
- ``codes``: vLLM is given the begin token and searches as many tokens as there are codes: equal tokens on both sides.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from onerec.catalog import ItemIndex
from onerec.chat import THINK_CLOSE, prompt_text
from onerec.cli import cli
from onerec.flags import COUNT, ArgumentParser
from onerec.parquet import read_table
from onerec.run import write_json
from onerec.sid import SidSpec


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="HF checkpoint with SIDs")
    parser.add_argument("--rl_data", type=Path, required=True, help="train.parquet or test.parquet of rl_data")
    parser.add_argument("--catalogue", type=Path, required=True, help="pid2sid.parquet")
    parser.add_argument("--task", default="video", help="task whose prompts are taken")
    parser.add_argument("--prompts", type=COUNT, default=16, help="prompts at a time")
    parser.add_argument("--beams", type=COUNT, default=32)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the numbers")
    return parser.parse_args(argv)


class Rollouts:
    """Both ways to roll out, over one engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        self.beams, self.model = args.beams, str(args.model)
        self.catalogue = str(args.catalogue)
        self.spec = SidSpec.load(args.model)
        self.index = ItemIndex.load(args.catalogue, self.spec)
        self.llm = LLM(
            model=self.model, trust_remote_code=False, dtype="float32", enforce_eager=True, enable_prefix_caching=True, max_logprobs=-1, seed=0,
            max_model_len=1024, max_num_seqs=256, max_num_batched_tokens=8192, worker_extension_cls="onerec.items.vllm_items.ItemWorker",
        )  # fmt: skip
        self.tokenizer = self.llm.get_tokenizer()

    def ours(self, prompts: list[list[int]], thinking: int) -> list[list[list[int]]]:
        """Items' token ids a prompt: thinking sampled once, then the items."""
        if thinking:
            prompts = self._think(prompts, thinking)
        prompts = [[*prompt, self.spec.begin_id] for prompt in prompts]
        n = len(prompts)
        found = self.llm.collective_rpc(
            "onerec_find_items",
            args=(prompts, [self.catalogue] * n, [self.beams] * n, [None] * n, 1.0, self.model),
        )[0]
        return [[ids for ids, _ in items] for items in found]

    def _think(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        close = self.tokenizer.convert_tokens_to_ids(THINK_CLOSE)
        tail = self.tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        params = SamplingParams(max_tokens=tokens, stop_token_ids=[close], detokenize=False)
        outputs = self.llm.generate(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], params, use_tqdm=False
        )
        thoughts = [[t for t in output.outputs[0].token_ids if t != close] for output in outputs]
        return [[*prompt, *thought, close, *tail] for prompt, thought in zip(prompts, thoughts, strict=True)]

    def theirs(self, prompts: list[list[int]], tokens: int) -> list[list[list[int]]]:
        """The written token ids of every beam, by ``LLM.beam_search``."""
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import BeamSearchParams

        outputs = self.llm.beam_search(
            [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts],
            BeamSearchParams(beam_width=self.beams, max_tokens=tokens, ignore_eos=True),
        )
        return [[list(beam.tokens[-tokens:]) for beam in output.sequences] for output in outputs]

    def valid(self, beams: list[list[list[int]]]) -> float:
        """Share of the beams that hold one SID that exists: its codes, or its codes between begin and end."""
        good = [self._exists(ids) for items in beams for ids in items]
        return sum(good) / len(good)

    def _exists(self, ids: list[int]) -> bool:
        if self.spec.begin_id in ids:
            ids = ids[ids.index(self.spec.begin_id) + 1 :]
            if len(ids) <= self.spec.n_layers or ids[self.spec.n_layers] != self.spec.end_id:
                return False
        codes = [t - first for t, (first, _) in zip(ids, self.spec.layer_ranges, strict=False)]
        return tuple(codes) in self.index


def measure(
    rollouts: Rollouts, rounds: int, n: int, sides: dict[str, Callable[[], Any]]
) -> dict[str, dict[str, float]]:
    """Median rollouts a second and share of valid beams of every side; the sides take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    valid: dict[str, float] = {}
    for round_ in range(rounds + 1):  # the first warms up
        for name, run in sides.items():
            rollouts.llm.reset_prefix_cache()
            start = time.perf_counter()
            beams = run()
            if round_:
                seconds[name].append(time.perf_counter() - start)
                valid[name] = rollouts.valid(beams)
    return {
        name: {"rollouts_per_second": n / statistics.median(times), "valid": valid[name]}
        for name, times in seconds.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "2"), ("VLLM_NO_USAGE_STATS", "1"), ("VLLM_LOGGING_LEVEL", "ERROR"),
                        ("OMP_NUM_THREADS", "1"), ("VLLM_ENABLE_V1_MULTIPROCESSING", "0")):  # fmt: skip
        os.environ.setdefault(name, value)
    rollouts = Rollouts(args)
    table = read_table(args.rl_data, ["data_source", "prompt"]).to_pylist()
    rows = [row["prompt"] for row in table if row["data_source"].endswith(f"/{args.task}")][: args.prompts]

    def coded(thinking: bool) -> list[list[int]]:
        texts = [prompt_text(row, thinking) for row in rows]
        return [list(ids) for ids in rollouts.tokenizer(texts, add_special_tokens=False)["input_ids"]]

    plain, thinking = coded(False), coded(True)
    begun = [[*prompt, rollouts.spec.begin_id] for prompt in plain]
    layers, budget = rollouts.spec.n_layers, 16
    pairs = {
        "rollout": (lambda: rollouts.ours(plain, 0), lambda: rollouts.theirs(plain, layers + 2)),
        "thinking": (
            lambda: rollouts.ours(thinking, budget),
            # The close of the thinking and its newlines are two tokens.
            lambda: rollouts.theirs(thinking, budget + 2 + layers + 2),
        ),
        "codes": (lambda: rollouts.ours(plain, 0), lambda: rollouts.theirs(begun, layers)),
    }
    result = {}
    for name, (ours, theirs) in pairs.items():
        if name == "thinking" and not budget:
            continue
        found = measure(rollouts, 3, len(rows), {"two_stage": ours, "beam_search": theirs})
        ratio = found["two_stage"]["rollouts_per_second"] / found["beam_search"]["rollouts_per_second"]
        result[name] = found | {"ratio": ratio}
        print(
            f"{name:9s} two-stage {found['two_stage']['rollouts_per_second']:7.2f} rollouts/s, {found['two_stage']['valid']:.1%} valid; "
            f"LLM.beam_search {found['beam_search']['rollouts_per_second']:7.2f}, {found['beam_search']['valid']:.1%} valid; {ratio:.1f} times",
            flush=True,
        )  # fmt: skip
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    cli(main)()
