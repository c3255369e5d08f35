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
from verl.trainer.ppo.v1 import register_trainer
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import AggregationType, Metric
from verl.utils.torch_functional import logprobs_from_logits
from verl.workers.config import DistillationLossConfig
from verl.workers.engine.base import EngineRegistry
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry
from verl.workers.utils.padding import no_padding_2_padding

from onerec.verl.engine import Engine
from onerec.verl.rows import lengths_of, nested, response_places
from onerec.verl.trainer import WatchedTrainer
from verl_distillation import alignment
from verl_distillation.settings import (
    ANCHOR,
    ANCHOR_KEY,
    EXTENDED_KEY,
    GENERAL,
    LOSS_MODE,
    PLAIN_ROLLOUT,
    PLAIN_TRAINER,
    START_KEY,
)


@dataclasses.dataclass
class LossConfig(DistillationLossConfig):
    """verl's settings of the loss, and ours.

    ``adv_min`` ``adv_max``: the advantage is clipped to them. ``extend_vocab_start``: the first id that the teacher
    does not have. ``mask_response_if_extended``: one such token in a response masks all of it.
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
    mask = (mask.to_padded_tensor(0) if mask.is_nested else mask).bool() & alignment.present(teacher)
    adv = alignment.advantage(student, teacher, settings.adv_min, settings.adv_max)
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
    return -adv, {f"distillation/{name}": Metric(AggregationType.MEAN, value) for name, value in metrics.items()}


# An engine of our own beside verl's: the registry tells engines of one device apart by their vendor.
_VENDOR = "onerec_distillation"
os.environ["VERL_ENGINE_VENDOR"] = _VENDOR


@EngineRegistry.register("language_model", ["fsdp", "fsdp2"], ["cuda", "npu", "cpu"], vendor=_VENDOR)
class StudentEngine(Engine):
    """verl's FSDP engine with a head behind the responses only, and with the logits of ids from ``extend_vocab_start``
    on (of the model's configuration) out of the softmax, or constants in it.

    Where a sequence is split over ranks (Ulysses) or padded to a length the head is verl's, behind every token.
    """

    @property
    def _start(self) -> int | None:
        return getattr(self.model_config.hf_config, START_KEY, None)

    @property
    def _masks(self) -> bool:
        return getattr(self.model_config.hf_config, EXTENDED_KEY, None) == "masked"

    def prepare_model_inputs(self, micro_batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """verl's inputs, and which logits the response tokens need."""
        inputs, output_args = super().prepare_model_inputs(micro_batch)
        if self.use_ulysses_sp or self.pad_to_length:
            if self._start is not None and not self._masks:
                raise NotImplementedError("forward_kl_topk does not go together with split or padded sequences")
            return inputs, output_args
        if tu.get_non_tensor_data(data=micro_batch, key="use_remove_padding", default=True):
            # One packed row: verl rolled its ids, so nothing but the head changes.
            inputs["logits_to_keep"], asked = response_places(*lengths_of(micro_batch)), None
        else:
            pad_id = tu.get_non_tensor_data(data=micro_batch, key="pad_token_id", default=0)
            prompts, responses = (micro_batch[name].unbind() for name in ("prompts", "responses"))
            answers, asked = alignment.answers_only(prompts, responses, pad_id)
            inputs |= answers
        return inputs, output_args | {"asked": asked}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Any]:
        """What verl makes of the logits, of response tokens only: nested, one before each token, 0 at the prompts."""
        if "asked" not in output_args:
            if self._start is not None:
                output.logits = alignment.mask_extended(output.logits, self._start)
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        flags = ("calculate_entropy", "calculate_sum_pi_squared", "distillation_use_topk", "distillation_only")
        entropy, squared, top_k, teacher_only = (
            tu.get_non_tensor_data(data=micro_batch, key=name, default=False) for name in flags
        )
        if squared:
            raise NotImplementedError("distillation does not go together with calculate_sum_pi_squared")
        prompt_lengths, response_lengths = lengths_of(micro_batch)
        asked = output_args["asked"]
        logits = output.logits[0] if asked is None else output.logits[asked]
        if self._start is not None and self._masks:
            logits = alignment.mask_extended(logits, self._start)
        elif self._start is not None:
            # The teacher of an anchor has the extended ids.
            anchor = torch.cat(list(micro_batch[ANCHOR_KEY].unbind())).bool()
            logits = alignment.fix_extended(logits, self._start, anchor.repeat_interleave(response_lengths)[:, None])
        if not output_args["temperature_is_one"]:
            temperature = micro_batch["temperature"]
            if isinstance(temperature, torch.Tensor):
                temperature = temperature.to(logits.dtype).repeat_interleave(response_lengths)[:, None]
            logits = logits / temperature
        found = {}
        if top_k:
            places, offsets = response_places(prompt_lengths, response_lengths), micro_batch["responses"].offsets()
            teacher = {
                name: torch.nested.nested_tensor_from_jagged(micro_batch[name].values()[places], offsets)
                for name in ("teacher_ids", "teacher_logprobs")
            }
            outputs = logits_processor_func(student_logits=logits[None], data=teacher)
            found |= {name: values[0] for name, values in outputs.items()}
        if not teacher_only:
            # Its backward may overwrite the logits where nothing else needs them.
            labels, alone = micro_batch["responses"].values(), not top_k and not entropy
            found["log_probs"] = logprobs_from_logits(logits, labels, inplace_backward=alone)
        if entropy:
            # verl's, which on a GPU is compiled: in eager steps it makes three float32 copies of the logits.
            found["entropy"] = self.compute_entropy_from_logits(logits)
        return nested(found, micro_batch)


def _replica() -> type:
    from verl_distillation.teacher import Replica

    return Replica


def _plain_replica() -> type:
    from verl_distillation.plain import TextReplica

    return TextReplica


RolloutReplicaRegistry.register("vllm", _replica)
RolloutReplicaRegistry.register(PLAIN_ROLLOUT, _plain_replica)
_ROLLOUT_REGISTRY[(PLAIN_ROLLOUT, "async")] = "onerec.verl.server.Adapter"


@register_trainer(PLAIN_TRAINER)
class PlainTrainer(WatchedTrainer):
    """`WatchedTrainer` whose teachers have no servers: they stand in the agent loop's process."""

    def init(self) -> None:
        self.use_teacher_policy = False  # or verl starts their servers
        super().init()
        self.distillation_config = omega_conf_to_dataclass(self.config.distillation)

    def get_teacher_client(self) -> dict[str, Any]:
        """A `Teacher` by each key."""
        from verl_distillation.plain import Teacher

        return {key: Teacher(model.model_path) for key, model in self.distillation_config.teacher_models.items()}


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
        start = sys.maxsize if anchor else settings.extend_vocab_start
        whole = settings.mask_response_if_extended and not anchor
        asked = alignment.plan(prompt_ids, response_ids, output.response_mask, start, whole)
        width = 1 if settings.loss_mode == LOSS_MODE else settings.topk
        ids, logprobs = torch.zeros(0, width, dtype=torch.int32), torch.zeros(0, width)
        if asked.places:
            ids, logprobs = await self.teacher_server_manager.compute_teacher_logprobs_single(
                sequence_ids=[sequence[i] for i in asked.places], routing_key=source
            )
        ids, logprobs = alignment.realign(asked.places, ids, logprobs, len(sequence), start)
        ids, logprobs, output.response_mask = alignment.mask_rows(asked.learn, ids, logprobs)
        output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"] = ids, logprobs


class Manager(AgentLoopManagerTQ):
    """verl's agent loop manager over `Worker`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(Worker)
