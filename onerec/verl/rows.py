"""Where verl looks for what belongs to a response token: rows of prompt and response stand one after the other, without padding,
and a token's value stands one before it, at the row whose logits predict it."""

from __future__ import annotations

import torch


def response_places(prompt_lengths: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Places of the rows that predict response tokens, int64 [n], in the flat rows of prompts and responses; prompts are not empty."""
    lengths = prompt_lengths + response_lengths
    starts = lengths.cumsum(0) - lengths + prompt_lengths - 1
    within = torch.arange(int(response_lengths.sum()), device=response_lengths.device)
    within -= (response_lengths.cumsum(0) - response_lengths).repeat_interleave(response_lengths)
    return starts.repeat_interleave(response_lengths) + within


def spread(values: torch.Tensor, prompt_lengths: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Values of response tokens, [n], where verl looks for them: one before each token in rows of prompt and response, [total]; 0 elsewhere."""
    places = response_places(prompt_lengths, response_lengths)
    return values.new_zeros(int((prompt_lengths + response_lengths).sum())).index_put((places,), values)
