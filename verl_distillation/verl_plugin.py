"""What distillation adds to verl 0.9.1, by registration: the loss, its settings, and the agent loop's teacher request.

verl imports this module in every process (VERL_USE_EXTERNAL_MODULES). The loss is stock verl's policy gradient with
another advantage; top-k forward KL (loss mode ``forward_kl_topk``) is stock verl's, on rows that `Worker` has cleaned.
`StudentEngine` keeps the extended ids from being taught anything by either.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

import ray
import torch
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import DistillationLossConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.utils.padding import no_padding_2_padding

import onerec.verl_trainer  # noqa: F401  registers itself
from verl_distillation.alignment import (
    advantage,
    fix_extended,
    mask_extended,
    mask_rows,
    plan,
    present,
    realign,
)
from verl_distillation.settings import ANCHOR, EXTENDED_KEY, GENERAL, LOSS_MODE, START_KEY


@dataclasses.dataclass
class LossConfig(DistillationLossConfig):
    """verl's settings of the loss, and ours.

    ``adv_min`` ``adv_max``: the advantage is clipped to them. ``extend_vocab_start``: the first id that the teacher does not
    have. ``mask_response_if_extended``: one such token in a response masks all of it.
    """

    adv_min: float = -30.0
    adv_max: float = 5.0
    extend_vocab_start: int = 0
    mask_response_if_extended: bool = False


@register_distillation_loss(DistillationLossSettings(names=[LOSS_MODE], use_estimator=True))
def clipped_reverse_kl(
    config: Any, distillation_config: Any, model_output: dict[str, Any], data: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Minus the advantage of every response token, [bsz, response length], for verl's ``use_policy_gradient``."""
    settings = distillation_config.distillation_loss
    student = no_padding_2_padding(model_output["log_probs"], data).detach()
    teacher = no_padding_2_padding(data["teacher_logprobs"], data).squeeze(-1)
    mask = data["response_mask"]
    lengths = mask.offsets().diff() if mask.is_nested else mask.new_full((len(mask),), mask.shape[1])
    mask = (mask.to_padded_tensor(0) if mask.is_nested else mask).bool() & present(teacher)
    adv = advantage(student, teacher, settings.adv_min, settings.adv_max)
    count = mask.sum().clamp(min=1)
    raw = (teacher - student)[mask]
    metrics = {
        "advantage_mean": adv[mask].sum() / count,
        "advantage_abs": adv[mask].abs().sum() / count,
        "reverse_kl": -raw.sum() / count,
        "clipped_low": (raw < settings.adv_min).sum() / count,
        "clipped_high": (raw > settings.adv_max).sum() / count,
        "masked_share": 1 - mask.sum() / lengths.sum().clamp(min=1),
    }
    return -adv, {
        f"distillation/{name}": Metric(AggregationType.MEAN, value) for name, value in metrics.items()
    }


# An engine of our own beside verl's: the registry tells engines of one device apart by their vendor.
_VENDOR = "onerec_distillation"
os.environ["VERL_ENGINE_VENDOR"] = _VENDOR


@EngineRegistry.register("language_model", ["fsdp", "fsdp2"], ["cuda", "npu", "cpu"], vendor=_VENDOR)
class StudentEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; the logits of ids from ``extend_vocab_start`` on (of the model's configuration) are out of the softmax,
    or constants in it."""

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: Any, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Treat the extended logits as the loss wants it, then what verl does."""
        start = getattr(self.model_config.hf_config, START_KEY, None)
        if start is not None:
            if getattr(self.model_config.hf_config, EXTENDED_KEY) == "masked":
                output.logits = mask_extended(output.logits, start)
            else:
                output.logits = fix_extended(
                    output.logits, start, self._taught(output.logits, micro_batch, start)
                )
        return super().prepare_model_outputs(output, output_args, micro_batch, *args, **kwargs)

    def _taught(self, logits: torch.Tensor, micro_batch: Any, start: int) -> torch.Tensor | None:
        """Of every row of logits, [..., 1], whether its teacher knows extended ids (an anchor's does); None where there is no teacher's answer."""
        ids = micro_batch.get("teacher_ids", None)
        if ids is None:
            return None
        rows = [(row >= start).any(-1) for row in ids.unbind()]
        if logits.shape[0] == len(rows) and logits.shape[0] > 1:
            taught = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        else:
            taught = torch.cat(rows)[None]
        padding = logits.shape[1] - taught.shape[1]
        return torch.nn.functional.pad(taught, (0, padding)).unsqueeze(-1)


# verl's class is an actor class already; what it was made of can be subclassed.
_Stock = AgentLoopWorkerTQ.__ray_metadata__.modified_class


class Worker(_Stock):
    """verl's agent loop worker, with a teacher that has not the extended vocabulary and without a task reward."""

    async def _compute_score(self, outputs: list[Any], kwargs: dict[str, Any]) -> None:
        """Distillation has no reward of its own; verl wants a number."""
        for output in outputs:
            output.reward_score = 0.0

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Ask the teacher for what it can read, put its rows where they belong, mask the others."""
        if not self.distillation_enabled or validate:
            return
        settings = self.config.distillation.distillation_loss
        sequence = [*prompt_ids, *response_ids]
        source = str((sample_kwargs or {}).get("data_source", GENERAL))
        # The teacher of an anchor is the student as it came: it has every id.
        anchor = source == ANCHOR
        asked = plan(
            prompt_ids,
            response_ids,
            output.response_mask,
            sys.maxsize if anchor else settings.extend_vocab_start,
            settings.mask_response_if_extended and not anchor,
        )
        width = 1 if settings.loss_mode == LOSS_MODE else settings.topk
        ids, logprobs = torch.zeros(0, width, dtype=torch.int32), torch.zeros(0, width)
        if asked.places:
            ids, logprobs = await self.teacher_server_manager.compute_teacher_logprobs_single(
                sequence_ids=[sequence[i] for i in asked.places], routing_key=source
            )
        ids, logprobs = realign(asked.places, ids, logprobs, len(sequence))
        ids, logprobs, output.response_mask = mask_rows(asked.learn, ids, logprobs)
        output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"] = ids, logprobs


class Manager(AgentLoopManagerTQ):
    """verl's agent loop manager over `Worker`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(Worker)
