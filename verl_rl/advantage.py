"""The advantage of every beam in its group: verl's estimator ``onerec_grpo``, and MaxRL's for beams.

verl's own GRPO scores, of an agent loop that returns several outputs, the last one and gives it to all of them. Here
the outputs are beams, and each is its own sample: the group of a prompt is every beam of every one of its rollouts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch

ESTIMATOR = "onerec_grpo"
ADVANTAGES = ("grpo", "maxrl")


def _index(names: Sequence[Hashable]) -> torch.Tensor:
    """int64 [n]: the same number for the same name."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.int64)


def _sums(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The sum of ``values`` over the rows of the same ``index``, at every row; [n]."""
    n = int(index.max()) + 1 if len(index) else 0
    return torch.zeros(n, dtype=values.dtype).index_add(0, index, values)[index]


def group_advantages(
    scores: torch.Tensor, groups: Sequence[Hashable], by_std: bool = True, epsilon: float = 1e-6
) -> torch.Tensor:
    """A_i = (r_i − mean of its group) / (standard deviation of its group + ε), float32 [n].

    The formula is GRPO's (DeepSeekMath, arXiv 2402.03300, equation 3 ff.); without ``by_std`` only the mean is taken
    off (Dr. GRPO, arXiv 2503.20783). ``scores`` float [n]; ``groups`` names the group of every one. A group of one, or
    one whose scores are all equal, has advantage 0: it carries no signal.
    """
    scores, index = scores.float(), _index(groups)
    count = _sums(torch.ones_like(scores), index)
    centred = scores - _sums(scores, index) / count
    if not by_std:
        return centred
    variance = _sums(centred**2, index) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt() + epsilon)


def likelihood_advantages(
    scores: torch.Tensor, groups: Sequence[Hashable], rollouts: Sequence[Hashable], log_probs: torch.Tensor | None
) -> torch.Tensor:
    """A_i = n w_i (r_i / R − 1) with R = Σ w_j r_j over the group of n rows, float32 [n]; 0 where R is 0.

    The policy gradient with it is that of log R, the logarithm of the reward that the group is expected to bring
    (MaxRL, arXiv 2602.02710). ``w`` is a row's probability among the beams of its rollout, from ``log_probs`` float
    [n], over the number of rollouts: a beam search finds an item whatever its probability, so its rows are no samples.
    Without ``log_probs`` the rows are samples, all alike. ``scores`` [n] are not negative.
    """
    scores, group, rollout = scores.float(), _index(groups), _index(rollouts)
    ones = torch.ones_like(scores)
    count, beams = _sums(ones, group), _sums(ones, rollout)
    share = 1 / beams
    if log_probs is not None and len(scores):
        top = torch.full((int(rollout.max()) + 1,), -torch.inf).scatter_reduce(0, rollout, log_probs.float(), "amax")
        odds = (log_probs.float() - top[rollout]).exp()
        share = odds / _sums(odds, rollout)
    weights = share / _sums(1 / beams, group)
    expected = _sums(weights * scores, group)
    return torch.where(expected > 0, count * weights * (scores / expected.clamp(min=1e-12) - 1), 0.0)


def onerec_grpo(
    token_level_rewards: torch.Tensor, response_mask: torch.Tensor, config: Any = None, index: Any = None, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's estimator interface: (advantages, returns), both [n, tokens], 0 where the mask is 0.

    token_level_rewards, response_mask: [n, tokens]; index: the prompt's uid of every row.
    """
    by_std = True if config is None else bool(config.get("norm_adv_by_std_in_grpo", True))
    with torch.no_grad():
        advantages = group_advantages(token_level_rewards.sum(-1), list(index), by_std)
        spread = advantages[:, None] * response_mask
    return spread, spread
