"""Loaded by verl in every process of a GRPO run (``VERL_USE_EXTERNAL_MODULES``): this stage in verl's registries."""

from __future__ import annotations

from verl.trainer.ppo.core_algos import register_adv_est
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

import verl_rl.engine
import verl_rl.trainer  # noqa: F401  both register themselves
from verl_rl.advantage import ESTIMATOR, onerec_grpo
from verl_rl.settings import ITEM_ROLLOUT, VLLM_ROLLOUT


def _items() -> type:
    from verl_rl.item_server import ItemReplica

    return ItemReplica


def _with_vllm() -> type:
    from verl_rl.server import OneRecReplica

    return OneRecReplica


register_adv_est(ESTIMATOR)(onerec_grpo)
RolloutReplicaRegistry.register(ITEM_ROLLOUT, _items)
RolloutReplicaRegistry.register(VLLM_ROLLOUT, _with_vllm)
_ROLLOUT_REGISTRY[(ITEM_ROLLOUT, "async")] = "onerec.verl.server.Adapter"
_ROLLOUT_REGISTRY[(VLLM_ROLLOUT, "async")] = "verl_rl.server.OneRecAdapter"
