"""Two parts of a distillation step beside verl's own: from a teacher's engine to the trainer, and an update.

    python scripts/perf/distillation.py teacher            # 32 sequences of 1,024 tokens, k = 32 python
    scripts/perf/distillation.py update             # CPU: 3 layers x 128, 32 prompts of 40 to 160 tokens, answers of
    32 python scripts/perf/distillation.py update --prompt 1024 --answer 512 --batch 4 --vocabulary 176247

``teacher``: the engine's tensors of every sequence become the trainer's tensors, pickled once on the way as Ray does
it: by vLLM's objects and verl's lists, or by `verl_distillation.teacher`. ``update``: forward and backward of the
top-k forward KL by verl's FSDP engine, whose head is behind every token, or by `StudentEngine`, whose head is behind
the answers. Both sides are compared before anything is timed; they take turns in one process, and the ratio is the
median over the rounds of that round's ratio.
"""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import statistics
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import ArgumentParser, add_clock, add_numbers, in_turns, medians, range_of, ratios

from onerec.cli import cli

os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "onerec.verl.cpu"}
ROWS = ("prompts", "responses", "input_ids", "position_ids", "teacher_ids", "teacher_logprobs")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("part", choices=("teacher", "update"))
    add_numbers(
        parser,
        sequences=(32, "teacher: sequences"),
        tokens=(1024, "teacher: tokens of a sequence"),
        topk=(32, "likeliest tokens of the teacher"),
        layers=(3, "update: transformer layers"),
        hidden=(128, "update: width"),
        vocabulary=(1500, "tokens"),
        batch=(32, "update: rows"),
        prompt=(160, "update: tokens of the longest prompt; the shortest has a quarter"),
        answer=(32, "update: tokens of an answer"),
        repeats=(5, "rounds"),
        seed=(0, "of weights and tokens"),
    )
    add_clock(parser)
    return parser.parse_args()


def teacher_sides(args: argparse.Namespace) -> dict[str, Callable[[], list[Any]]]:
    """(ids, log-probabilities) of every sequence, [tokens, k], out of the engine's tensors."""
    from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs
    from vllm import SamplingParams
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    from verl_distillation.teacher import TensorLogprobs, rows

    generator = torch.Generator().manual_seed(args.seed)
    sent = []
    for _ in range(args.sequences):
        scores = torch.randn(args.tokens - 1, args.vocabulary, generator=generator).log_softmax(-1)
        own = torch.randint(args.vocabulary, (args.tokens - 1, 1), generator=generator)
        top, value = scores.topk(args.topk, dim=-1), scores.gather(1, own)
        ids, values = torch.cat([own, top.indices], 1).int(), torch.cat([value, top.values], 1)
        sent.append(LogprobsTensors(ids, values, (scores >= value).sum(1)))

    request = types.SimpleNamespace(sampling_params=SamplingParams(prompt_logprobs=args.topk, detokenize=False))

    def processed(kind: Any, tensors: LogprobsTensors) -> Any:
        processor = kind.from_new_request(None, request)
        processor._update_prompt_logprobs(tensors)
        return processor.prompt_logprobs

    def arrived(answer: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        answer = pickle.loads(pickle.dumps(answer, protocol=5))
        return torch.tensor(answer["prompt_ids"], dtype=torch.int32), torch.tensor(answer["prompt_logprobs"])

    def stock() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for tensors in sent:
            answer: dict[str, Any] = {}
            objects = processed(LogprobsProcessor, tensors)
            extract_prompt_logprobs(types.SimpleNamespace(prompt_logprobs=objects), args.topk, answer)
            found.append(arrived(answer))
        return found

    def ours() -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = []
        for tensors in sent:
            ids, logprobs = rows(processed(TensorLogprobs, tensors), args.topk)
            found.append(arrived({"prompt_ids": ids, "prompt_logprobs": logprobs}))
        return found

    return {"objects": stock, "tensors": ours}


def update_sides(args: argparse.Namespace) -> dict[str, Callable[[], list[Any]]]:
    """The loss of every answer token, after a backward pass of their mean."""
    from measure import qwen3
    from verl.trainer.distillation import distillation_ppo_loss
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from verl_distillation.verl_plugin import StudentEngine

    torch.manual_seed(args.seed)
    shape = argparse.Namespace(**vars(args), intermediate=3 * args.hidden, heads=4, kv_heads=2, head_dim=32)
    model = qwen3(shape, args.vocabulary, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(args.seed)
    lengths = torch.linspace(args.prompt // 4, args.prompt, args.batch).long().tolist()
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ROWS}
    for length in lengths:
        ids = torch.randint(args.vocabulary, (length + args.answer,), generator=generator)
        top = torch.randn(len(ids), args.vocabulary, generator=generator).log_softmax(-1).topk(args.topk, dim=-1)
        parts = (ids[:length], ids[length:], ids, torch.arange(len(ids)), top.indices, top.values)
        for name, part in zip(rows, parts, strict=True):
            rows[name].append(part)
    tensors = {
        name: torch.nested.nested_tensor_from_jagged(torch.cat(parts), torch.tensor([0, *map(len, parts)]).cumsum(0))
        for name, parts in rows.items()
    }
    settings = {"temperature": 1.0, "use_remove_padding": False, "pad_token_id": 0}
    settings |= {"distillation_use_topk": True, "distillation_only": True}
    batch = tu.get_tensordict(tensors, settings)
    engine = StudentEngine.__new__(StudentEngine)
    engine.use_ulysses_sp = engine.pad_to_length = False
    engine.engine_config = types.SimpleNamespace(entropy_checkpointing=False)
    engine.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace())
    own_loss = types.SimpleNamespace(use_chunked_topk=False, log_prob_min_clamp=None)
    loss = functools.partial(
        distillation_ppo_loss,
        config=types.SimpleNamespace(strategy="fsdp2"),
        distillation_config=types.SimpleNamespace(distillation_loss=own_loss),
    )

    def side(kind: type) -> list[torch.Tensor]:
        model.zero_grad()
        inputs, extra = kind.prepare_model_inputs(engine, batch)
        found = kind.prepare_model_outputs(engine, model(**inputs, use_cache=False), extra, batch, loss)
        whole = zip(found["distillation_losses"].unbind(), lengths, strict=True)
        losses = [row[length - 1 : -1] for row, length in whole]
        torch.cat(losses).mean().backward()
        return [value.detach() for value in losses]

    return {
        "head behind every token": lambda: side(FSDPEngineWithLMHead),
        "head behind the answers": lambda: side(StudentEngine),
    }


def main() -> None:
    args = parse_args()
    sides = (teacher_sides if args.part == "teacher" else update_sides)(args)
    first, second = ([torch.as_tensor(part) for row in side() for part in row] for side in sides.values())
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    seconds = in_turns(sides, args.repeats, args.clock)
    slow, fast = seconds
    found = ratios(seconds, slow, fast)
    shown = ", ".join(f"{name} {value:.3f} s" for name, value in medians(seconds).items())
    times = f"{statistics.median(found):.2f} times as fast ({range_of(found)} over {args.repeats} rounds)"
    print(f"{args.part}: {shown}, {times}")


if __name__ == "__main__":
    cli(main)()
