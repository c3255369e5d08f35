"""A vLLM logits processor: only a trie node's children can follow, with the log-probabilities of the whole softmax.

vLLM returns the most likely tokens of the logits as processed, normalised over what is left. All logits but the
children's are taken out and their mass is put on the token ``rest`` alone, which is no child: the softmax over what is
left then has the denominator of the whole one, and each child its own log-probability. With ``within``, a (first,
last) pair of ids, the mass of those ids alone counts. A request asks with ``SamplingParams(extra_args={"children":
[...], "rest": id, "within": None})``.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


class TrieLogits(LogitsProcessor):
    """Applied to every batch; rows whose request names no children stay as they are."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, tuple[torch.Tensor, int, list[int] | None]] = {}
        self.device = device

    def is_argmax_invariant(self) -> bool:
        """False: which token is the most likely changes."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests that come, go and move in the batch."""
        process_dict_updates(self.requests, batch_update, lambda params, *_: self._request(params))

    def _request(self, params: Any) -> tuple[torch.Tensor, int, list[int] | None] | None:
        asked = params.extra_args or {}
        if "children" not in asked:
            return None
        return torch.tensor(asked["children"], device=self.device), asked["rest"], asked["within"]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask the rows of the requests; logits: float32 [B, vocabulary]."""
        for row, (children, rest, within) in self.requests.items():
            kept = logits[row, children]
            logits[row, children] = -torch.inf
            first, last = within or (0, logits.shape[1] - 1)
            mass = torch.logsumexp(logits[row, first : last + 1], dim=0)
            logits[row] = -torch.inf
            logits[row, children] = kept
            logits[row, rest] = mass
        return logits
