"""What the teacher is asked and what is learnt from its answer, as arithmetic on one sequence.

verl's alignment: row ``t`` of a sequence's teacher tensors holds what belongs to token ``t + 1``. The teacher does not
have the extended vocabulary (ids from ``start`` on), so it reads a sequence without those tokens, its rows are put back
where they belong, and the extended tokens' own rows carry no signal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Stands in a row that the teacher says nothing about. No model gives a log-probability as low; it is finite, so sums
# over masked rows stay finite; and its exponential is 0, so such an entry weighs nothing in a forward KL.
ABSENT = -1.0e4
_PRESENT = ABSENT / 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one sampled sequence asks of the teacher.

    ``places``: positions of the tokens that the teacher reads. ``learn``: of every response token, whether it carries
    signal.
    """

    places: list[int]
    learn: list[bool]


def plan(
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    response_mask: Sequence[int],
    start: int,
    mask_response: bool,
) -> Plan:
    """Which tokens the teacher reads and which response tokens are learnt, before it has been asked.

    An extended token (id >= ``start``) is neither read nor learnt; with ``mask_response`` one of them in a response
    keeps the whole response from being learnt. ``places`` is empty where nothing is learnt: the teacher need not be
    asked. The first token that the teacher reads has no row (nothing before it), so it is not learnt either.
    """
    places = [i for i, token in enumerate([*prompt_ids, *response_ids]) if token < start]
    first = places[0] if places else 0
    learn = [
        bool(keep) and token < start and len(prompt_ids) + i > first
        for i, (token, keep) in enumerate(zip(response_ids, response_mask, strict=True))
    ]
    if mask_response and any(token >= start for token in response_ids):
        learn = [False] * len(learn)
    return Plan(places if any(learn) else [], learn)


def realign(
    places: Sequence[int], ids: torch.Tensor, logprobs: torch.Tensor, length: int, start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Teacher rows [len(places), k] of the tokens that it read, put where they belong in a sequence of ``length``
    tokens.

    Row ``j`` of ``ids`` and ``logprobs`` belongs to the token at ``places[j + 1]`` (the last row to none). Returns ids
    (int32) and log-probabilities (float32), [length, k]. (0, `ABSENT`) stands in rows of tokens that the teacher did
    not read, for values that are not finite, and for ids from ``start`` on: a base LLM's head has padding rows (Qwen3's
    are 151,669 to 151,935), whose ids are itemic tokens to the student.
    """
    import torch

    width = logprobs.shape[-1] if logprobs.ndim == 2 else 1
    all_ids = torch.zeros(length, width, dtype=torch.int32)
    all_logprobs = torch.full((length, width), ABSENT)
    if len(places) > 1:
        rows = torch.tensor(places[1:]) - 1
        values = logprobs[:-1].float()
        said = torch.isfinite(values) & (ids[:-1].long() < start)  # no int32 is below what exceeds its range
        all_logprobs[rows] = torch.where(said, values, torch.tensor(ABSENT))
        all_ids[rows] = torch.where(said, ids[:-1].to(torch.int32), torch.tensor(0, dtype=torch.int32))
    return all_ids, all_logprobs


def present(logprobs: torch.Tensor) -> torch.Tensor:
    """Of teacher log-probabilities of any shape, whether each is one (True) or stands for none (False)."""
    return logprobs > _PRESENT


def mask_rows(
    learn: Sequence[bool], ids: torch.Tensor, logprobs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(ids, logprobs, response mask): only the rows of learnt response tokens keep their teacher values, [length, k].

    ``learn`` is of the last ``len(learn)`` tokens. A learnt token whose row has no value at all is dropped from the
    mask. verl takes minima over a micro-batch's response mask, which may not be empty: where nothing is learnt the
    first token's mask stays 1, with a row that gives a signal of exactly 0.
    """
    import torch

    length, n = logprobs.shape[0], len(learn)
    first = length - n - 1  # the row of the first response token
    has_value = present(logprobs[first : length - 1]).any(-1)
    mask = torch.tensor(list(learn), dtype=torch.bool) & has_value
    keep = torch.zeros(length, dtype=torch.bool)
    keep[first : length - 1] = mask
    ids = torch.where(keep[:, None], ids, torch.zeros_like(ids))
    logprobs = torch.where(keep[:, None], logprobs, torch.full_like(logprobs, ABSENT))
    response_mask = mask.int().tolist()
    if n and not any(response_mask):
        response_mask[0] = 1
    return ids, logprobs, response_mask


def advantage(student: torch.Tensor, teacher: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """−(log p_student − log p_teacher) a token, clipped to [``low``, ``high``]; 0 where the teacher is `ABSENT`.

    The negative of the single-sample estimate of KL(student || teacher), as the advantage of a policy gradient. Both
    distributions are over the teacher's vocabulary (`mask_extended` for the student).
    """
    import torch

    value = (teacher.float() - student.detach().float()).clamp(low, high)
    return torch.where(present(teacher), value, torch.zeros_like(value))


def mask_extended(logits: torch.Tensor, start: int) -> torch.Tensor:
    """``logits`` [..., vocabulary] with the ids from ``start`` on out of the softmax; in place, returned for
    convenience.

    For the policy gradient, whose probabilities are then over the ids that the teacher has. Without it the advantages,
    mostly negative (their mean is minus a KL), push base tokens down while masked extended tokens have 0, and the
    student learns to answer everything with itemic tokens, which nobody scores.
    """
    logits[..., start:].fill_(ABSENT)
    return logits


def fix_extended(logits: torch.Tensor, start: int, taught: torch.Tensor | None = None) -> torch.Tensor:
    """``logits`` [..., vocabulary] of which those from ``start`` on are constants: in the softmax, without a gradient.

    For the forward KL, which takes mass on extended ids back by raising the base tokens. Without a gradient the itemic
    rows of the head stay as they are; Adam turns any gradient, however small, into full steps, and recommendation would
    pay for that. Rows where ``taught`` (bool, [..., 1]) is True keep their gradient: their teacher has the extended
    ids.
    """
    import torch

    extended = logits[..., start:]
    fixed = extended.detach()
    if taught is not None:
        fixed = torch.where(taught, extended, fixed)
    return torch.cat([logits[..., :start], fixed], dim=-1)


def answers_only(
    prompts: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], pad_id: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Rows padded so that all prompts end in one column, and the head behind them only: a prompt's logits teach
    nothing.

    Returns the model's inputs (``input_ids``, ``position_ids``, ``attention_mask``: int64 [rows, longest prompt +
    longest response]; ``logits_to_keep``: int64 [longest response], the columns that predict a response token) and
    which of the kept logits do, bool [rows, longest response]. Prompts (not empty) and responses: int64 [length] of
    every row.
    """
    import torch

    ends = torch.nn.utils.rnn.pad_sequence
    head = ends([row.flip(0) for row in prompts], batch_first=True, padding_value=pad_id).flip(1)
    tail = ends(list(responses), batch_first=True, padding_value=pad_id)
    prompt_lengths, response_lengths = (
        torch.tensor([len(row) for row in rows], device=head.device).unsqueeze(1) for rows in (prompts, responses)
    )
    asked = torch.arange(tail.shape[1], device=head.device) < response_lengths
    real = torch.cat([torch.arange(head.shape[1], device=head.device) >= head.shape[1] - prompt_lengths, asked], 1)
    inputs = {
        "input_ids": torch.cat([head, tail], 1),
        "position_ids": (real.cumsum(1) - 1).clamp_min(0),
        "attention_mask": real.long(),
        "logits_to_keep": torch.arange(head.shape[1] - 1, head.shape[1] - 1 + tail.shape[1], device=head.device),
    }
    return inputs, asked
