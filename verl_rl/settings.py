"""The rollout's settings, the ``onerec`` node of verl's configuration: `train_grpo` writes it, the loop reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from verl_rl.rewards import check_weights

DEFAULT_CATALOGUE = "default"
# verl's names of the rollouts: the item engine alone, and vLLM, which writes thoughts, with the engine beside it.
ITEM_ROLLOUT, VLLM_ROLLOUT = "onerec_items", "onerec_vllm"
ITEM_TOKENS = 1 << 16  # of a batch of the item engine, its beams counted
# Under this name the model's configuration tells verl_rl.engine to compute rows that begin alike once.
SHARE_KEY = "onerec_share_prompts"
# Under these names the ``onerec`` node of verl's configuration tells the trainer which advantage, whether its rows are
# samples, with what share of the trained weights the exported average is made, and where its validation is written.
ADVANTAGE_KEY, SAMPLED_KEY, MERGE_RATIO_KEY, MERGE_LOG_KEY = "advantage", "sampled", "merge_ratio", "merge_log"


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """A rollout's switches and limits.

    ``two_stage``: thinking, then items; otherwise the whole answer is one sample. ``stage2``: ``beam`` or ``sample``.
    ``beam_size``: items a thinking. ``constrained``: only SIDs that exist. ``think``, ``nonthink``: which answers are
    asked for; with both, the rollouts of a prompt alternate, with neither the model decides. ``force_prefix``: the
    SID's begin token is written for the model, otherwise it must write it. ``stage1_max_tokens``: of thinking.
    ``catalogues``: task (or ``default``) to pid2sid.parquet. ``weights``: reward to weight. ``ks``, ``val_beam_size``:
    of a validation.
    """

    two_stage: bool
    stage2: str
    beam_size: int
    constrained: bool
    think: bool
    nonthink: bool
    force_prefix: bool
    stage1_max_tokens: int
    catalogues: dict[str, str]
    weights: dict[str, float]
    ks: tuple[int, ...]
    val_beam_size: int
    seed: int

    @property
    def rollout(self) -> str:
        """Which rollout can do it: vLLM is needed for what is not an item."""
        return ITEM_ROLLOUT if self.two_stage and self.nonthink and not self.think else VLLM_ROLLOUT

    def thinking(self, session: int) -> bool | None:
        """Whether the ``session``-th rollout of a prompt thinks; None where the model decides."""
        if not (self.think or self.nonthink):
            return None
        return self.think and (not self.nonthink or session % 2 == 0)

    def catalogue(self, data_source: str) -> str | None:
        """The pid2sid.parquet of a row's task (``onerec/product`` is of task ``product``); None where unconstrained."""
        if not self.constrained:
            return None
        return self.catalogues.get(data_source.rsplit("/", 1)[-1]) or self.catalogues[DEFAULT_CATALOGUE]

    def override(self) -> str:
        """The hydra override that carries the settings: JSON text, so that no name needs hydra's quoting."""
        return "+onerec.settings=" + json.dumps(json.dumps(dataclasses.asdict(self), ensure_ascii=False))

    @staticmethod
    def of(config: Mapping[str, Any]) -> RolloutSettings:
        """Read the settings back from verl's configuration."""
        values = json.loads(config["onerec"]["settings"])
        values["ks"] = tuple(values["ks"])
        values["weights"] = check_weights(values["weights"])
        return RolloutSettings(**values)
