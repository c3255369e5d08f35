"""Loaded by verl in every process of a GRPO run (``VERL_USE_EXTERNAL_MODULES``): this stage in verl's registries."""

from __future__ import annotations

from verl.trainer.ppo.core_algos import register_adv_est
from verl.workers.rollout.base import _ROLLOUT_REGISTRY
from verl.workers.rollout.replica import RolloutReplicaRegistry

import verl_rl.engine
import verl_rl.trainer  # noqa: F401  both register themselves
from verl_rl.advantage import ESTIMATOR, onerec_grpo

ROLLOUT = "onerec_vllm"


def _replica() -> type:
    from verl_rl.server import OneRecReplica

    return OneRecReplica


register_adv_est(ESTIMATOR)(onerec_grpo)
RolloutReplicaRegistry.register(ROLLOUT, _replica)
# The weights' way into the server is vLLM's own.
_ROLLOUT_REGISTRY[(ROLLOUT, "async")] = _ROLLOUT_REGISTRY[("vllm", "async")]
