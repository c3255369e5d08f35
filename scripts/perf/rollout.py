"""Speed of the item stage of a rollout, beside vLLM's own beam search: the same model, prompts and process.

    python scripts/perf/rollout.py --model runs/quickstart/models/sft/hf --rl_data
    runs/quickstart/output/rl_data/test.parquet \\
        --catalogue runs/quickstart/output/benchmark_data/video_ad_pid2sid.parquet --task video

Three pairs, interleaved, medians of the rounds: - ``rollout``: an answer without thinking. vLLM writes the whole SID,
begin and end included, by ``LLM.beam_search``; two-stage
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import ArgumentParser, add_numbers

from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.parquet import read_table
from onerec.verl.launch import check_model

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="HF checkpoint with SIDs")
    parser.add_argument("--rl_data", type=Path, required=True, help="train.parquet or test.parquet of rl_data")
    parser.add_argument("--catalogue", type=Path, required=True, help="pid2sid.parquet")
    parser.add_argument("--task", default="video", help="task whose prompts are taken")
    add_numbers(parser, prompts=(16, "prompts at a time"), beams=(32, "beams"), rounds=(3, "rounds"))
    add_numbers(parser, thinking_tokens=(16, "tokens of thinking of the second pair"))
    return parser.parse_args()


class Rollouts:
    """Both ways to roll out, over one engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        opened = check_model(args.model)
        import torch
        from vllm import LLM

        from onerec.items.model import ItemModel

        self.beams = args.beams
        self.spec, self.renderer = opened.spec, opened.renderer
        self.index = ItemIndex.load(args.catalogue, self.spec)
        sizes = {"max_model_len": 1024, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
        self.llm = LLM(
            model=str(args.model),
            trust_remote_code=False,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=True,
            max_logprobs=-1,
            seed=0,
            **sizes,
        )
        self.tokenizer = self.llm.get_tokenizer()
        self.engine = ItemModel.open(args.model, self.spec, "cpu", torch.float32)

    def ours(self, prompts: list[list[int]], thinking: int) -> list[list[list[int]]]:
        """Items' token ids a prompt: thinking sampled once by vLLM, then the items by the engine."""
        from onerec.items.search import find_items

        if thinking:
            prompts = self._think(prompts, thinking)
        prompts = [[*prompt, self.spec.begin_id] for prompt in prompts]
        found = find_items(self.engine, prompts, self.index, self.beams, token_budget=1 << 16)
        return [[list(item.token_ids) for item in items] for items in found]

    def _think(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        think = self.renderer.think_ids(self.tokenizer)
        close, tail = think.close, think.after_close
        params = SamplingParams(max_tokens=tokens, stop_token_ids=[close], detokenize=False)
        asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        outputs = self.llm.generate(asked, params, use_tqdm=False)
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


def measure(rollouts: Rollouts, rounds: int, n: int, sides: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Median rollouts a second and share of valid beams of every side; sides take turns, each with an empty cache."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    valid: dict[str, float] = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, run in sides.items():
            rollouts.llm.reset_prefix_cache()
            start = time.perf_counter()
            beams = run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
                valid[name] = rollouts.valid(beams)
    return {name: (n / statistics.median(times), valid[name]) for name, times in seconds.items()}


def main() -> None:
    args = parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    rollouts = Rollouts(args)
    table = read_table(args.rl_data, ["data_source", "prompt"]).to_pylist()
    rows = [row["prompt"] for row in table if row["data_source"].endswith(f"/{args.task}")][: args.prompts]

    def coded(thinking: bool) -> list[list[int]]:
        texts = [rollouts.renderer.prompt_text(row, thinking) for row in rows]
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
    for name, (ours, theirs) in pairs.items():
        found = measure(rollouts, args.rounds, len(rows), {"two-stage": ours, "LLM.beam_search": theirs})
        shown = "; ".join(f"{side} {rate:.2f} rollouts/s, {valid:.1%} valid" for side, (rate, valid) in found.items())
        ratio = found["two-stage"][0] / found["LLM.beam_search"][0]
        print(f"{name:9s} {shown}; {ratio:.1f} times", flush=True)


if __name__ == "__main__":
    cli(main)()
