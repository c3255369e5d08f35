"""Where verl looks for what belongs to a response token: rows of prompt and response stand one after the other, without
padding, and a token's value stands one before it, at the row whose logits predict it."""

from __future__ import annotations

from typing import Any

import torch


def response_places(prompt_lengths: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Places, int64 [n], of the rows that predict response tokens, in flat rows of prompts and responses."""
    lengths = prompt_lengths + response_lengths
    starts = lengths.cumsum(0) - lengths + prompt_lengths - 1
    within = torch.arange(int(response_lengths.sum()), device=response_lengths.device)
    within -= (response_lengths.cumsum(0) - response_lengths).repeat_interleave(response_lengths)
    return starts.repeat_interleave(response_lengths) + within


def spread(values: torch.Tensor, prompt_lengths: torch.Tensor, response_lengths: torch.Tensor) -> torch.Tensor:
    """Values of response tokens, [n], at the places where verl looks for them, [total]; 0 elsewhere."""
    places = response_places(prompt_lengths, response_lengths)
    return values.new_zeros(int((prompt_lengths + response_lengths).sum())).index_put((places,), values)


def lengths_of(micro_batch: Any) -> list[torch.Tensor]:
    """Lengths of a micro-batch's prompts and of its responses, int64 [rows] each."""
    return [micro_batch[name].offsets().diff() for name in ("prompts", "responses")]


def nested(found: dict[str, torch.Tensor], micro_batch: Any) -> dict[str, torch.Tensor]:
    """Values of response tokens, [n] each, in the form of a verl engine's outputs: nested over whole rows."""
    lengths, offsets = lengths_of(micro_batch), micro_batch["input_ids"].offsets()
    rows = {name: spread(values, *lengths) for name, values in found.items()}
    return {name: torch.nested.nested_tensor_from_jagged(values, offsets) for name, values in rows.items()}
