"""verl's synchronous trainer with this stage's metrics, and with an end where rollouts fail; registers itself."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import ray
import transfer_queue as tq
from verl.trainer.ppo.v1 import PPOTrainerSync, register_trainer

from onerec.errors import InputError
from verl_rl.metrics import low_var_kl, task_metrics, time_split

TRAINER = "onerec_sync"
# How often the rollout servers are asked whether they live.
_WATCH_SECONDS = 10


@register_trainer(TRAINER)
class OneRecTrainer(PPOTrainerSync):
    """`PPOTrainerSync` that reports by task, splits a step's time, and stops where a prompt's rollouts are missing."""

    def _build_replay_buffer(self) -> Any:
        # verl tells its synchronous trainer by this name, in the replay buffer and in checkpoints.
        self.trainer_mode = "sync"
        return super()._build_replay_buffer()

    def on_train_begin(self) -> None:
        super().on_train_begin()
        threading.Thread(target=self._watch_servers, daemon=True).start()

    def _watch_servers(self) -> None:
        """End this process when a rollout server dies: verl's weight sync would wait for it for ever."""
        servers = [server for replica in self.llm_server_manager.get_replicas() for server in replica.servers]
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                ray.get([server.check.remote() for server in servers], timeout=10 * _WATCH_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue  # busy
            except ray.exceptions.RayError as error:
                what = str(error).strip().splitlines()[-1]
                print(f"InputError: a rollout server died in step {self.global_steps} ({what})", flush=True)
                time.sleep(1)  # Ray forwards what was printed
                os._exit(1)

    def _balance_batch(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = self.config.data.train_batch_size
        found = len({key.rsplit("_", 2)[0] for key in batch.keys})
        if found < wanted:
            raise InputError(
                "rollout", f"{wanted - found} of {wanted} prompts of step {self.global_steps} came back without an answer", "a rollout server that lives; its error stands above in the log"
            )  # fmt: skip
        return super()._balance_batch(batch, *args, **kwargs)

    def _compute_metrics(
        self, batch: Any, metrics: dict[str, Any], timing_raw: dict[str, float], *args: Any, **kwargs: Any
    ) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, *args, **kwargs)
        metrics.update(task_metrics(self._rows(batch)))
        split = time_split(timing_raw)
        metrics.update({f"onerec/seconds/{name}": value for name, value in split.items()})
        whole = sum(split.values())
        shares = ", ".join(f"{name} {value:.1f} s" for name, value in split.items() if value)
        print(
            f"step {self.global_steps}: reward {metrics['onerec/all/reward']:.4f}, no signal "
            f"{metrics['onerec/all/no_signal']:.0%}, valid {metrics['onerec/all/valid_sid']:.0%}; {whole:.1f} s: {shares}",
            flush=True,
        )

    def _rows(self, batch: Any) -> list[dict[str, Any]]:
        """The batch's real rows in `task_metrics`' form."""
        real = [
            key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)
        ]
        fields = [
            "data_source",
            "extra_fields",
            "rm_scores",
            "responses",
            "response_mask",
            "old_log_probs",
            "entropy",
        ]
        if self.use_reference_policy:
            fields.append("ref_log_prob")
        data = tq.kv_batch_get(keys=real, partition_id=batch.partition_id, select_fields=fields)
        # Values that are not tensors come wrapped or bare, by the number of rows.
        sources, extras = (
            [getattr(v, "data", v) for v in data[name]] for name in ("data_source", "extra_fields")
        )
        rows = []
        for i, key in enumerate(real):
            mask = data["response_mask"][i].numpy().astype(bool)
            own = {
                "entropy": data["entropy"][i].float().numpy()[mask],
                "response_tokens": np.array([mask.size]),
                "learnt_tokens": np.array([mask.sum()]),
            }
            if self.use_reference_policy:
                policy, reference = (
                    data[name][i].float().numpy() for name in ("old_log_probs", "ref_log_prob")
                )
                own["kl"] = low_var_kl(policy, reference)[mask]
            info = dict(extras[i]["reward_extra_info"])
            info |= {
                name: float(values.mean()) if values.size else float("nan") for name, values in own.items()
            }
            rows.append(
                {
                    "task": sources[i].rsplit("/", 1)[-1],
                    "group": key.rsplit("_", 2)[0],
                    "reward": float(data["rm_scores"][i].sum()),
                    "answer": tuple(data["responses"][i].tolist()[-2 - self._layers :]),
                    "info": info,
                }
            )
        return rows

    @property
    def _layers(self) -> int:
        if not hasattr(self, "_n_layers"):
            from onerec.sid import SidSpec

            self._n_layers = SidSpec.load(self.config.actor_rollout_ref.model.path).n_layers
        return self._n_layers
