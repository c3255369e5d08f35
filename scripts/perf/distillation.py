"""Two parts of a distillation step, each beside verl's own: what lies between a teacher's engine and the trainer, and an update.

    python scripts/perf/distillation.py teacher            # 32 sequences of 1,024 tokens, k = 32
    python scripts/perf/distillation.py update             # CPU: 3 layers x 128, 32 prompts of 40 to 160 tokens, answers of 32
    python scripts/perf/distillation.py update --prompt 1024 --answer 512 --batch 4 --vocabulary 176247

``teacher``: the engine's tensors of every sequence become the trainer's tensors, pickled once on the way as Ray does it: by vLLM's
objects and verl's lists, or by `verl_distillation.teacher`. ``update``: forward and backward of the top-k forward KL by verl's FSDP
engine, whose head is behind every token, or by `StudentEngine`, whose head is behind the answers. Both sides are compared before
anything is timed; they take turns in one process, and the ratio is the median over the rounds of that round's ratio.
"""

from __future__ import annotations

import argparse
import functools
import os
import pickle
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT

sys.path.insert(0, str(ROOT))
from onerec.cli import cli
from onerec.flags import COUNT, SEED, ArgumentParser

os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "onerec.verl.cpu"}


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("part", choices=("teacher", "update"))
    for name, value, text in (
        ("sequences", 32, "teacher: sequences"),
        ("tokens", 1024, "teacher: tokens of a sequence"),
        ("topk", 32, "likeliest tokens of the teacher"),
        ("layers", 3, "update: transformer layers"),
        ("hidden", 128, "update: width"),
        ("vocabulary", 1500, "tokens"),
        ("batch", 32, "update: rows"),
        ("prompt", 160, "update: tokens of the longest prompt; the shortest has a quarter"),
        ("answer", 32, "update: tokens of an answer"),
        ("repeats", 5, "rounds"),
        ("seed", 0, "of weights and tokens"),
    ):
        taken = SEED if name == "seed" else COUNT
        parser.add_argument(f"--{name}", type=taken, default=value, help=f"{text} (default {value})")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process' processor time, for a machine that others use (with OMP_NUM_THREADS=1)",
    )
    return parser.parse_args()


def teacher_sides(
    args: argparse.Namespace,
) -> dict[str, Callable[[], list[tuple[torch.Tensor, torch.Tensor]]]]:
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


def update_sides(args: argparse.Namespace) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """The loss of every answer token, after a backward pass of their mean."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from verl.trainer.distillation import distillation_ppo_loss
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from verl_distillation.verl_plugin import StudentEngine

    torch.manual_seed(args.seed)
    config = Qwen3Config(
        vocab_size=args.vocabulary, hidden_size=args.hidden, intermediate_size=3 * args.hidden,
        num_hidden_layers=args.layers, num_attention_heads=4, num_key_value_heads=2, head_dim=32, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(args.seed)
    lengths = torch.linspace(args.prompt // 4, args.prompt, args.batch).long().tolist()
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in ("prompts", "responses", "input_ids", "position_ids", "teacher_ids", "teacher_logprobs")}  # fmt: skip
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
    settings = {
        "temperature": 1.0, "use_remove_padding": False, "distillation_use_topk": True, "distillation_only": True,
        "pad_token_id": 0,
    }  # fmt: skip
    batch = tu.get_tensordict(tensors, settings)
    engine = StudentEngine.__new__(StudentEngine)
    engine.use_ulysses_sp = engine.pad_to_length = False
    engine.engine_config = types.SimpleNamespace(entropy_checkpointing=False)
    engine.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace())
    loss = functools.partial(
        distillation_ppo_loss,
        config=types.SimpleNamespace(strategy="fsdp2"),
        distillation_config=types.SimpleNamespace(
            distillation_loss=types.SimpleNamespace(use_chunked_topk=False, log_prob_min_clamp=None)
        ),
    )

    def side(kind: type) -> list[torch.Tensor]:
        model.zero_grad()
        inputs, extra = kind.prepare_model_inputs(engine, batch)
        found = kind.prepare_model_outputs(engine, model(**inputs, use_cache=False), extra, batch, loss)
        losses = [
            row[length - 1 : -1] for row, length in zip(found["distillation_losses"].unbind(), lengths, strict=True)
        ]
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
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.repeats):
        for name, side in sides.items():
            start = clock()
            side()
            seconds[name].append(clock() - start)
    ratios = [one / other for one, other in zip(*seconds.values(), strict=True)]
    shown = ", ".join(f"{name} {statistics.median(values):.3f} s" for name, values in seconds.items())
    print(
        f"{args.part}: {shown}, {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f} over {args.repeats} rounds)"
    )


if __name__ == "__main__":
    cli(main)()
