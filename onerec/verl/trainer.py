"""verl's synchronous trainer with an end where rollouts fail, and without long waits; registers itself.

Distillation and GRPO share it. verl's own would wait for a dead rollout server for ever in its weight sync, trains on
what is left where prompts came back without an answer, and looks every two seconds whether a step's rollouts are there.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import ray
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from onerec.errors import InputError
from onerec.verl.launch import WATCHED_TRAINER

# How often the rollout servers are asked whether they live, and whether a step's rollouts are there.
_WATCH_SECONDS = 10
_POLL_SECONDS = 0.25


def check_engine(server: Any) -> None:
    """Raises where the engine behind ``server`` is dead; runs inside it.

    That is vLLM's, which has processes of its own; a node without the API server has none. Another server
    (`onerec.verl.server`) lives while its process does.
    """
    engine = getattr(server, "engine", None)
    if getattr(engine, "errored", False):
        raise engine.dead_error


@register_trainer(WATCHED_TRAINER)
class WatchedTrainer(PPOTrainerSync):
    """`PPOTrainerSync` that stops where a rollout server dies or a prompt's rollouts are missing."""

    def _build_replay_buffer(self) -> Any:
        # verl tells its synchronous trainer by this name, in the replay buffer and in checkpoints.
        self.trainer_mode = "sync"
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = _POLL_SECONDS
        return buffer

    def on_train_begin(self) -> None:
        super().on_train_begin()
        threading.Thread(target=self._watch_servers, daemon=True).start()

    def _watch_servers(self) -> None:
        """End this process when a server of the rollout or of a teacher dies."""
        replicas = list(self.llm_server_manager.get_replicas())
        for teacher in getattr(self.teacher_model_manager, "teacher_model_managers", {}).values():
            replicas += teacher.rollout_replicas
        servers = [server for replica in replicas for server in replica.servers]
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                asked = [server.__ray_call__.remote(check_engine) for server in servers]
                ray.get(asked, timeout=10 * _WATCH_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue  # busy
            except ray.exceptions.RayError as error:
                what = str(error).strip().splitlines()[-1]
                print(f"InputError: a rollout server died in step {self.global_steps} ({what})", flush=True)
                time.sleep(1)  # Ray forwards what was printed
                os._exit(1)

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        found = len({key.rsplit("_", 2)[0] for key in batch.keys})
        self._check_answered(found, self.config.data.train_batch_size, f"step {self.global_steps}")
        return super()._balance_batch(batch, *args, **kwargs)

    def _val_metrics_update(
        self, sources: Any, answered: Any, *args: Any, expected_acc_counts: dict[Any, int], **kwargs: Any
    ) -> dict[str, float]:
        """verl's, whose means would be over the prompts that were answered."""
        wanted = sum(expected_acc_counts.values())
        self._check_answered(len(answered), wanted, f"the validation at step {self.global_steps}")
        return super()._val_metrics_update(sources, answered, *args, expected_acc_counts=expected_acc_counts, **kwargs)

    def _check_answered(self, found: int, wanted: int, of: str) -> None:
        if found < wanted:
            what = f"{wanted - found} of {wanted} prompts of {of} came back without an answer"
            raise InputError("rollout", what, "a rollout server that lives; its error stands above in the log")
