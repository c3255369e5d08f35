"""The two-stage rollout as verl's agent loop: thinking up to ``</think>`` (or none), then items behind a forced begin.

A rollout gives one output a beam, each with its own reward. verl writes the last output's reward over all of a
rollout's outputs; `BeamOutput` keeps its own, so that the estimator (`verl_rl.advantage`) sees every beam.
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

from onerec.items.item import Item
from onerec.render import renderer_of
from onerec.sid import SidSpec
from verl_rl.assemble import Marks, Response, Thought, after_thinking, encode_prompt, with_item, without_thinking
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
        folder = self.config.actor_rollout_ref.model.path
        self.settings = RolloutSettings.of(self.config)
        self.spec, self.renderer = _spec(folder), renderer_of(folder)
        self.marks = Marks.of(Path(folder), self.tokenizer, self.spec)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[BeamOutput] | BeamOutput:
        """Outputs of a training row, one a beam; or one of a validation row, whose metrics rank its beams."""
        start, settings = time.monotonic(), self.settings
        session, validation = int(row["session_id"]), bool(row[VALIDATION])
        thinking, truth = settings.thinking(session), row["reward_model"]["ground_truth"]
        limit = self.rollout_config.prompt_length
        prompt, cut = encode_prompt(row["raw_prompt"], thinking, self.tokenizer, self.spec, limit, self.renderer)
        thinking = thinking is not False  # left to itself, the model opens its think block or leaves it empty
        missing = 0
        if settings.two_stage:
            thought, steps = await self._think(prompt, thinking, sampling_params)
            width = settings.val_beam_size if validation else settings.beam_size
            found = []
            if thought.opens_item:
                seed = None if validation or settings.stage2 == "beam" else self._seed(row, session)
                found, steps = await self._items([*prompt, *thought.response.ids], row["data_source"], width, seed)
            missing = width - len(found)
            responses = [with_item(thought, item.token_ids, item.logprobs, self.marks) for item in found]
            responses = responses or [thought.response]
        else:
            thought, steps = await self._answer(prompt, thinking, sampling_params)
            responses = [thought.response]
        counts = {
            "prompt_cut": float(cut),
            "missing_beams": float(missing),
            **{f"thinking_{name}": float(thought.ended == name) for name in ("cut", "stopped", "no_item")},
            "thinking_tokens": float(sum(thought.response.mask)),
            "rollout_seconds": time.monotonic() - start,
        }
        head, shared = self.tokenizer.decode(thought.response.ids), len(thought.response.ids)
        texts = [head + self.tokenizer.decode(response.ids[shared:]) for response in responses]
        answers = [self.renderer.as_record(text) for text in texts]
        rows = score_group(answers, truth, self.spec, settings.weights, thinking, thought.well_formed)
        if validation:
            # A malformed answer keeps its place: it is a miss, and those behind it do not move up.
            ranked = [parse_answer(text, self.spec).sid for text in answers]
            metrics = ranking_metrics(ranked, list(dict.fromkeys(self.spec.parse(truth))), settings.ks)
            return self._output(prompt, responses[0], rows[0] | counts | metrics, steps)
        counts["distinct_in_rollout"] = float(len(set(texts)))
        pairs = zip(responses, rows, strict=True)
        return [self._output(prompt, response, scores | counts, steps) for response, scores in pairs]

    async def _generate(self, prompt: list[int], **params: Any) -> tuple[list[int], list[float], int | None]:
        """Ids that the model samples, their log-probabilities, and the version of the weights that wrote them."""
        out = await self.server_manager.generate(request_id=uuid4().hex, prompt_ids=prompt, sampling_params=params)
        logprobs = list(out.log_probs or [0.0] * len(out.token_ids))
        return list(out.token_ids), logprobs, out.extra_fields.get("global_steps")

    async def _think(self, prompt: list[int], thinking: bool, params: dict[str, Any]) -> tuple[Thought, int | None]:
        """The thought, and the version of the weights."""
        settings, marks = self.settings, self.marks
        if not thinking:
            return without_thinking(marks), None
        stop = marks.close if settings.force_prefix else marks.begin
        limits = {"max_tokens": settings.stage1_max_tokens, "stop_token_ids": [stop, *marks.ends]}
        ids, logprobs, steps = await self._generate(prompt, **(params | limits))
        return after_thinking(ids, logprobs, marks, settings.force_prefix), steps

    async def _answer(self, prompt: list[int], thinking: bool, params: dict[str, Any]) -> tuple[Thought, int | None]:
        """Single stage: the whole answer is one sample."""
        head = Response() if thinking else Response().forced(self.marks.empty_thinking)
        room = self.rollout_config.response_length - len(head.ids)
        limits = {"max_tokens": room, "stop_token_ids": list(self.marks.ends)}
        ids, logprobs, steps = await self._generate([*prompt, *head.ids], **(params | limits))
        return Thought(head.written(ids, logprobs), "closed" if thinking else "empty"), steps

    def _seed(self, row: dict[str, Any], session: int) -> int:
        """The seed of a rollout's draws: the same for the same row, step and rollout, wherever it runs."""
        key = f"{self.settings.seed}/{row['global_steps']}/{row['data_source']}/{row['index']}/{session}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=6).digest(), "little")

    async def _items(
        self, ids: list[int], data_source: str, width: int, seed: int | None
    ) -> tuple[list[Item], int | None]:
        """The items behind ``ids``, and the version of the weights."""
        wanted = Wanted(self.settings.catalogue(data_source), width, seed, self.rollout_config.temperature)
        out = await self.server_manager.generate(
            request_id=uuid4().hex, prompt_ids=ids, sampling_params={ITEMS: wanted}
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
