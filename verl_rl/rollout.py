"""The two-stage rollout as verl's agent loop: thinking up to ``</think>`` (or none), then items behind a forced begin.

A rollout gives one output a beam, each with its own reward. verl writes the last output's reward over all of a rollout's
outputs; `BeamOutput` keeps its own, so that the estimator (`verl_rl.advantage`) sees every beam.
"""

from __future__ import annotations

import functools
import hashlib
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from onerec.items.search import Item
from onerec.sid import SidSpec
from verl_rl.assemble import (
    Marks,
    Response,
    Thought,
    after_thinking,
    encode_prompt,
    with_item,
    without_thinking,
)
from verl_rl.dataset import VALIDATION
from verl_rl.item_server import ITEMS, Wanted
from verl_rl.rewards import parse_answer, ranking_metrics, score_group
from verl_rl.settings import RolloutSettings


class BeamOutput(AgentLoopOutput):
    """An agent loop's output whose reward is its own, not that of the rollout's last output."""

    own_reward: float
    own_info: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """As verl stores it, with ``rm_scores`` [response] holding the reward at the last token."""
        fields = super().as_dict()
        fields.pop("own_reward"), fields.pop("own_info")
        scores = torch.zeros_like(fields["response_mask"], dtype=torch.float32)
        scores[-1] = self.own_reward
        fields["rm_scores"] = scores
        fields["extra_fields"] = dict(fields["extra_fields"], reward_extra_info=self.own_info)
        return fields


@functools.lru_cache(maxsize=4)
def _spec(path: str) -> SidSpec:
    return SidSpec.load(path)


class TwoStageLoop(AgentLoopBase):
    """One rollout of one prompt; `RolloutSettings` say how."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings = RolloutSettings.of(self.config)
        self.spec = _spec(self.config.actor_rollout_ref.model.path)
        self.marks = Marks.of(Path(self.config.actor_rollout_ref.model.path), self.tokenizer, self.spec)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[BeamOutput] | BeamOutput:
        """Outputs of a training row, one a beam, or the one output of a validation row, whose metrics rank its beams."""
        start = time.monotonic()
        session, validation = int(row["session_id"]), bool(row[VALIDATION])
        thinking, truth = self.settings.thinking(session), row["reward_model"]["ground_truth"]
        prompt, cut = encode_prompt(
            row["raw_prompt"], thinking, self.tokenizer, self.spec, self.rollout_config.prompt_length
        )
        thinking = thinking is not False  # left to itself, the model opens its think block or leaves it empty
        if self.settings.two_stage:
            thought, steps = await self._think(prompt, thinking, sampling_params)
            found, steps = await self._items(prompt, thought, row, session, validation, steps)
            responses = [with_item(thought, item.token_ids, item.logprobs, self.marks) for item in found]
            missing = self._width(validation) - len(responses)
            responses = responses or [thought.response]
        else:
            thought, steps = await self._answer(prompt, thinking, sampling_params)
            responses, missing = [thought.response], 0
        counts = {
            "prompt_cut": float(cut),
            "missing_beams": float(missing),
            **{f"thinking_{name}": float(thought.ended == name) for name in ("cut", "stopped", "no_item")},
            "thinking_tokens": float(sum(thought.response.mask)),
            "rollout_seconds": time.monotonic() - start,
        }
        head, shared = self.tokenizer.decode(thought.response.ids), len(thought.response.ids)
        texts = [head + self.tokenizer.decode(response.ids[shared:]) for response in responses]
        rows = score_group(texts, truth, self.spec, self.settings.weights, thinking, thought.well_formed)
        if validation:
            # A malformed answer keeps its place: it is a miss, and those behind it do not move up.
            ranked = [parse_answer(text, self.spec).sid for text in texts]
            metrics = ranking_metrics(ranked, list(dict.fromkeys(self.spec.parse(truth))), self.settings.ks)
            return self._output(prompt, responses[0], rows[0] | counts | metrics, steps)
        distinct = float(len(set(texts)))
        return [
            self._output(prompt, response, scores | counts | {"distinct_in_rollout": distinct}, steps)
            for response, scores in zip(responses, rows, strict=True)
        ]

    def _width(self, validation: bool) -> int:
        return self.settings.val_beam_size if validation else self.settings.beam_size

    async def _think(self, prompt: list[int], thinking: bool, params: dict[str, Any]) -> tuple[Thought, int | None]:
        """The thought, and the version of the weights that wrote it."""
        settings = self.settings
        if not thinking:
            return without_thinking(self.marks), None
        stop = self.marks.close if settings.force_prefix else self.marks.begin
        params = dict(params, max_tokens=settings.stage1_max_tokens, stop_token_ids=[stop, *self.marks.ends])
        out = await self.server_manager.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=params)
        logprobs = list(out.log_probs or [0.0] * len(out.token_ids))
        thought = after_thinking(out.token_ids, logprobs, self.marks, settings.force_prefix)
        return thought, out.extra_fields.get("global_steps")

    async def _answer(self, prompt: list[int], thinking: bool, params: dict[str, Any]) -> tuple[Thought, int | None]:
        """Single stage: the whole answer is one sample."""
        head = Response() if thinking else Response().forced(self.marks.empty_thinking)
        room = self.rollout_config.response_length - len(head.ids)
        params = dict(params, max_tokens=room, stop_token_ids=list(self.marks.ends))
        out = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=[*prompt, *head.ids], sampling_params=params
        )
        response = head.written(list(out.token_ids), list(out.log_probs or [0.0] * len(out.token_ids)))
        return Thought(response, "closed" if thinking else "empty"), out.extra_fields.get("global_steps")

    async def _items(
        self, prompt: list[int], thought: Thought, row: dict[str, Any], session: int, validation: bool,
        steps: int | None,
    ) -> tuple[list[Item], int | None]:  # fmt: skip
        """The items behind a thought, and the version of the weights."""
        if not thought.opens_item:
            return [], steps
        settings, seed = self.settings, None
        if settings.stage2 == "sample" and not validation:
            key = f"{settings.seed}/{row['global_steps']}/{row['data_source']}/{row['index']}/{session}".encode()
            seed = int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "little")
        wanted = Wanted(
            settings.catalogue(row["data_source"]), self._width(validation), seed, self.rollout_config.temperature
        )
        out = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=[*prompt, *thought.response.ids], sampling_params={ITEMS: wanted}
        )
        return out.extra_fields[ITEMS], out.extra_fields["global_steps"]

    def _output(self, prompt: list[int], response: Response, info: dict[str, float], steps: int | None) -> BeamOutput:
        limit = self.rollout_config.response_length
        version = {"min_global_steps": steps, "max_global_steps": steps}
        return BeamOutput(
            prompt_ids=prompt,
            response_ids=response.ids[:limit],
            response_mask=response.mask[:limit],
            response_logprobs=response.logprobs[:limit],
            # Not None, or verl asks its reward workers.
            reward_score=info["score"],
            own_reward=info["score"],
            own_info=info,
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=info["rollout_seconds"]),
            extra_fields={"turn_scores": [], "tool_rewards": [], **version, "reward_extra_info": info},
        )
