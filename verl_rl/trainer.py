"""The trainer that distillation and GRPO share, with this stage's metrics; registers itself."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1 import register_trainer
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions

from onerec.run import write_text
from onerec.sid import SidSpec
from onerec.verl.trainer import WatchedTrainer
from verl_rl.advantage import likelihood_advantages
from verl_rl.metrics import low_var_kl, task_metrics, time_split
from verl_rl.settings import ADVANTAGE_KEY, MERGE_LOG_KEY, MERGE_RATIO_KEY, SAMPLED_KEY, SHARE_KEY
from verl_rl.shared_prompts import keep_groups

TRAINER = "onerec_sync"


def group_of(key: str) -> str:
    """The group of a row's key in verl's queue: the prompt's identifier, without rollout and item."""
    return key.rsplit("_", 2)[0]


def rollout_of(key: str) -> str:
    """The rollout of a row's key: without the item."""
    return key.rsplit("_", 1)[0]


@contextlib.contextmanager
def tensors_only(batch: Any) -> Iterator[None]:
    """Within it workers fetch the batch's tensors alone: strings and dictionaries, which no engine reads, are slow."""
    meta = tq.get_client().kv_retrieve_meta(keys=batch.keys, partition_id=batch.partition_id, create=False)
    batch.fields = [name for name, field in meta.field_schema.items() if not field.get("is_non_tensor", False)]
    try:
        yield
    finally:
        batch.fields = None


@register_trainer(TRAINER)
class OneRecTrainer(WatchedTrainer):
    """`WatchedTrainer` that reports by task, splits a step's time and validates the average that will be exported."""

    def fit(self, agent_loop_manager: Any) -> None:
        """verl's; then, where the exported weights are an average with the base model's, these too."""
        super().fit(agent_loop_manager)
        ratio, trainer = self.config.onerec[MERGE_RATIO_KEY], self.config.trainer
        if ratio == 1 or trainer.test_freq <= 0 or trainer.get("val_only", False):
            return
        folders = (trainer.default_local_dir, self.config.actor_rollout_ref.model.path)
        replicas = self.llm_server_manager.get_replicas()
        servers = [
            server for replica in replicas for server in (*replica.servers, *getattr(replica, "item_servers", ()))
        ]
        ray.get([server.load_merged.remote(*folders, ratio) for server in servers])
        line = {"step": self.total_training_steps, "data": self._validate()}
        write_text(self.config.onerec[MERGE_LOG_KEY], json.dumps(line, default=float) + "\n")

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, float], *args: Any, **kwargs: Any
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, *args, **kwargs)
        metrics.update(task_metrics(self._rows(batch)))
        split = time_split(timing_raw)
        metrics.update({f"onerec/seconds/{name}": value for name, value in split.items()})
        whole = sum(split.values())
        shares = ", ".join(f"{name} {value:.1f} s" for name, value in split.items() if value)
        reward, no_signal, valid = (metrics[f"onerec/all/{name}"] for name in ("reward", "no_signal", "valid_sid"))
        told = f"reward {reward:.4f}, no signal {no_signal:.0%}, valid {valid:.0%}"
        print(f"step {self.global_steps}: {told}; {whole:.1f} s: {shares}", flush=True)

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """verl's, and where groups share their prompt, each of them whole on one rank."""
        batch = super()._balance_batch(batch, *args, **kwargs)
        override = self.config.actor_rollout_ref.model.get("override_config") or {}
        if override.get(SHARE_KEY):
            actor = self.config.actor_rollout_ref.actor
            order = keep_groups(
                [group_of(key) for key in batch.keys],
                [tag["seq_len"] for tag in batch.tags],
                max(self.actor_rollout_wg._dispatch_info["actor"]) + 1,
                get_seqlen_balanced_partitions,
                by_length=actor.ppo_mini_batch_size >= self.config.data.train_batch_size,
            )
            if order is not None:
                batch.reorder(order)
        return batch

    def _compute_old_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        with tensors_only(batch):
            return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch: Any, metrics: dict[str, Any]) -> Any:
        with tensors_only(batch):
            return super()._compute_ref_log_prob(batch, metrics)

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        with tensors_only(batch):
            return super()._update_actor(batch, metrics)

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's way to the registered estimator, which sees rewards alone; MaxRL's needs the beams' probabilities."""
        if self.config.onerec[ADVANTAGE_KEY] != "maxrl":
            return super()._compute_advantage(batch, metrics)
        fields = ["rm_scores", "response_mask", "old_log_probs"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        scores, masks, log_probs = (data[name].unbind() for name in fields)
        beams = torch.stack([(row * mask).sum() for row, mask in zip(log_probs, masks, strict=True)])
        rewards = torch.stack([row.sum() for row in scores])
        groups, rollouts = [group_of(key) for key in batch.keys], [rollout_of(key) for key in batch.keys]
        known = None if self.config.onerec[SAMPLED_KEY] else beams
        pairs = zip(likelihood_advantages(rewards, groups, rollouts, known), masks, strict=True)
        spread = torch.nested.as_nested_tensor([value * mask for value, mask in pairs], layout=torch.jagged)
        rows = TensorDict({"advantages": spread, "returns": spread}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=rows)

    def _rows(self, batch: Any) -> list[dict[str, Any]]:
        """The batch's real rows in `task_metrics`' form."""
        real = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        told, numbers = ["data_source", "extra_fields"], ["rm_scores", "responses", "response_mask", "entropy"]
        if self.use_reference_policy:
            numbers += ["old_log_probs", "ref_log_prob"]
        data = tq.kv_batch_get(keys=real, partition_id=batch.partition_id, select_fields=[*told, *numbers])
        # Values that are not tensors come wrapped or bare, by the number of rows.
        sources, extras = ([getattr(v, "data", v) for v in data[name]] for name in told)
        # Taken apart once: indexing a nested tensor takes all of its rows apart each time.
        tensors = {name: data[name].unbind() for name in numbers}
        layers = _layers(self.config.actor_rollout_ref.model.path)
        rows = []
        for i, key in enumerate(real):
            mask = tensors["response_mask"][i].numpy().astype(bool)
            own = {
                "entropy": tensors["entropy"][i].float().numpy()[mask],
                "response_tokens": np.array([mask.size]),
                "learnt_tokens": np.array([mask.sum()]),
            }
            if self.use_reference_policy:
                policy, reference = (tensors[name][i].float().numpy() for name in ("old_log_probs", "ref_log_prob"))
                own["kl"] = low_var_kl(policy, reference)[mask]
            info = dict(extras[i]["reward_extra_info"])
            info |= {name: float(values.mean()) if values.size else float("nan") for name, values in own.items()}
            row = {"task": sources[i].rsplit("/", 1)[-1], "group": group_of(key), "info": info}
            row["reward"] = float(tensors["rm_scores"][i].sum())
            row["answer"] = tuple(tensors["responses"][i].tolist()[-2 - layers :])
            rows.append(row)
        return rows


@functools.cache
def _layers(model: str) -> int:
    return SidSpec.load(model).n_layers
