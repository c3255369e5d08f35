"""The advantage of every beam in its group: verl's estimator ``onerec_grpo``.

verl's own GRPO scores, of an agent loop that returns several outputs, the last one and gives it to all of them. Here the
outputs are beams, and each is its own sample: the group of a prompt is every beam of every one of its rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

ESTIMATOR = "onerec_grpo"


def group_advantages(
    scores: torch.Tensor, groups: Sequence[Any], by_std: bool = True, epsilon: float = 1e-6
) -> torch.Tensor:
    """A_i = (r_i − mean of its group) / (standard deviation of its group + ε), float32 [n].

    ``scores`` float [n]; ``groups`` names the group of every one. Without ``by_std`` only the mean is taken off (Dr. GRPO,
    arXiv 2503.20783). A group of one, or one whose scores are all equal, has advantage 0: it carries no signal.
    The formula is GRPO's (DeepSeekMath, arXiv 2402.03300, equation 3 ff.).
    """
    scores = scores.float()
    _, index = torch.unique(torch.tensor([hash(group) for group in groups]), return_inverse=True)
    n = int(index.max()) + 1 if len(scores) else 0
    count = torch.zeros(n).index_add(0, index, torch.ones_like(scores))
    mean = torch.zeros(n).index_add(0, index, scores) / count
    centred = scores - mean[index]
    if not by_std:
        return centred
    variance = torch.zeros(n).index_add(0, index, centred**2) / (count - 1).clamp(min=1)
    return centred / (variance.sqrt()[index] + epsilon)


def onerec_grpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    index: Any = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """verl's estimator interface: (advantages, returns), both [n, tokens], 0 where the mask is 0.

    token_level_rewards, response_mask: [n, tokens]; index: the prompt's uid of every row.
    """
    by_std = True if config is None else bool(config.get("norm_adv_by_std_in_grpo", True))
    with torch.no_grad():
        advantages = group_advantages(token_level_rewards.sum(-1), list(index), by_std)
        spread = advantages[:, None] * response_mask
    return spread, spread
