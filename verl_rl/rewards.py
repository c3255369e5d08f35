"""Rewards of recommendation: pure functions on texts and SIDs, and their weighted sum.

To add one, write its function and its row in `REWARDS`. A group is what one thinking led to: its answers in the order
of the beams, best first; a reward gives a number to each. The idea of hit, partial-hit and format rewards is
OpenOneRec's (arXiv 2512.24762, section on RL); hard negatives weighted by rank are MiniOneRec's (arXiv 2510.24431).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onerec.errors import InputError
from onerec.ranking import pass_at_k, recall_at_k
from onerec.render import THINK_CLOSE, THINK_OPEN
from onerec.sid import BEGIN, SidSpec

Sid = tuple[int, ...]
# Why an answer counts as little as an answer can.
MALFORMED = ("thinking_open", "no_sid", "sid_broken", "sid_extra")


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer's one SID, or None and the reason (of `MALFORMED`) why it has none; and its thinking."""

    sid: Sid | None
    malformed: str | None
    thinking: str | None


@dataclasses.dataclass(frozen=True)
class Group:
    """What a reward sees: the answers of one thinking as texts and as they were read, and the SIDs that the user took.

    ``hits``: `full_hit` of each answer. ``thinking``: whether thinking was asked for. ``well_formed``: False where the
    rollout closed the thinking for the model.
    """

    texts: Sequence[str]
    answers: Sequence[Answer]
    hits: Sequence[float]
    truth: Sequence[Sid]
    n_layers: int
    thinking: bool
    well_formed: bool


def parse_answer(text: str, spec: SidSpec) -> Answer:
    """Read an assistant's text, as records write it (`Renderer.as_record`): thinking, then exactly one SID.

    Malformed are thinking that never closes, an answer without SID, one with a broken SID or a code outside its
    codebook, and one with more than the SID.
    """
    if THINK_OPEN in text and THINK_CLOSE not in text:
        return Answer(None, "thinking_open", None)
    thinking, answer = None, text
    if THINK_CLOSE in text:
        head, answer = text.split(THINK_CLOSE, 1)
        thinking = head.split(THINK_OPEN, 1)[-1].strip("\n")
    if BEGIN not in answer:
        return Answer(None, "no_sid", thinking)
    found = spec.parse(answer)
    if not found:
        return Answer(None, "sid_broken", thinking)
    if answer.strip() != spec.format(found[0]):
        return Answer(None, "sid_extra", thinking)
    return Answer(found[0], None, thinking)


def think_format(text: str, thinking: bool) -> float:
    """1 where ``text`` is one think block and then an answer, the block filled (``thinking``) or empty, else 0."""
    if text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1:
        return 0.0
    match = re.fullmatch(rf"\s*{re.escape(THINK_OPEN)}(.*){re.escape(THINK_CLOSE)}\s*(\S.*)", text, flags=re.DOTALL)
    return float(bool(match) and bool(match[1].strip()) == thinking)


def full_hit(sid: Sid | None, truth: Sequence[Sid]) -> float:
    """1 where ``sid`` is one of ``truth``, else 0."""
    return float(sid is not None and sid in set(truth))


def partial_hit(sid: Sid | None, truth: Sequence[Sid], n_layers: int) -> float:
    """Layers that agree with some SID of ``truth``, from the first on, over all layers: 0, 1/L, …, 1."""
    if sid is None:
        return 0.0
    agree = [layer for layer in range(1, n_layers + 1) if any(sid[:layer] == other[:layer] for other in truth)]
    return len(agree) / n_layers


def pass_rate(hits: Sequence[float]) -> float:
    """Share of the group's answers that hit."""
    return sum(hits) / len(hits) if hits else 0.0


def pass_at_1(hits: Sequence[float]) -> float:
    """1 where the group's first answer hits, else 0."""
    return hits[0] if hits else 0.0


def rank_aware(hits: Sequence[float]) -> list[float]:
    """For every answer of a group, best first: a hit 1; a miss −w_r / Σ w over the misses, w_r = 1/log2(r + 2).

    A wrong answer costs the more the higher the model ranked it; the misses of a group cost 1 together.
    """
    costs = [0.0 if hit else 1 / math.log2(rank + 2) for rank, hit in enumerate(hits)]
    total = sum(costs) or 1.0
    return [hit if hit else -cost / total for hit, cost in zip(hits, costs, strict=True)]


def _rank_aware(group: Group) -> list[float]:
    """`rank_aware`, and for a malformed answer the worst that it can be."""
    pairs = zip(rank_aware(group.hits), group.answers, strict=True)
    return [value if answer.malformed is None else LOWEST["rank_aware"] for value, answer in pairs]


# Every reward by its name: one number for each answer of a group, at most 1.
REWARDS: dict[str, Callable[[Group], list[float]]] = {
    "think_format": lambda group: [think_format(text, group.thinking) * group.well_formed for text in group.texts],
    "full_hit": lambda group: list(group.hits),
    "partial_hit": lambda group: [partial_hit(a.sid, group.truth, group.n_layers) for a in group.answers],
    "pass_rate": lambda group: [pass_rate(group.hits)] * len(group.hits),
    "pass_at_1": lambda group: [pass_at_1(group.hits)] * len(group.hits),
    "rank_aware": _rank_aware,
}
# The lowest value of a reward where that is not 0.
LOWEST = {"rank_aware": -1.0}


def lowest_score(weights: Mapping[str, float]) -> float:
    """The least that a weighted sum of rewards can be, whatever the answer."""
    return sum(min(weight * LOWEST.get(name, 0.0), weight) for name, weight in weights.items())


def check_weights(weights: Mapping[str, float]) -> dict[str, float]:
    """The weights as floats; raises `InputError` for a name that is no reward, a value that is no number, or none."""
    for name, value in weights.items():
        if name not in REWARDS:
            raise InputError("reward weights", f"{name} is not a reward", f"of {', '.join(REWARDS)}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise InputError("reward weights", f"{name} has weight {value!r}", "a number")
    if not any(weights.values()):
        raise InputError("reward weights", "are all 0", f"some of {', '.join(REWARDS)}")
    return {name: float(value) for name, value in weights.items()}


def parse_weights(text: str) -> dict[str, float]:
    """``full_hit=1,partial_hit=0.5`` to `check_weights`' dictionary."""
    weights: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        try:
            weights[name.strip()] = float(value)
        except ValueError:
            weights[name.strip()] = value
    return check_weights(weights)


def score_group(
    texts: Sequence[str],
    ground_truth: str,
    spec: SidSpec,
    weights: Mapping[str, float],
    thinking: bool,
    well_formed: bool = True,
) -> list[dict[str, float]]:
    """Score the answers of one thinking.

    Args:
        texts: the assistant's texts as records write them, best beam first. ground_truth: the SIDs that the user took,
            as text.
        weights: reward name to weight; a reward without weight is a metric only. thinking, well_formed: see `Group`.

    Returns for every answer ``score`` (the weighted sum), every reward of `REWARDS` by name, ``valid_sid`` and
    ``malformed/<reason>``, all floats. A malformed answer's score is `lowest_score`, whatever the group's rewards, so
    that no well-formed one scores less, however wrong.
    """
    answers = [parse_answer(text, spec) for text in texts]
    truth = list(dict.fromkeys(spec.parse(ground_truth)))
    hits = [full_hit(answer.sid, truth) for answer in answers]
    group = Group(texts, answers, hits, truth, spec.n_layers, thinking, well_formed)
    values = {name: reward(group) for name, reward in REWARDS.items()}
    rows = []
    for place, answer in enumerate(answers):
        row = {name: each[place] for name, each in values.items()}
        total = sum(weight * row[name] for name, weight in weights.items())
        row["score"] = total if answer.malformed is None else lowest_score(weights)
        row["valid_sid"] = float(answer.sid is not None)
        row |= {f"malformed/{reason}": float(answer.malformed == reason) for reason in MALFORMED}
        rows.append(row)
    return rows


def ranking_metrics(ranked: Sequence[Sid | None], truth: Sequence[Sid], ks: Sequence[int]) -> dict[str, float]:
    """``pass@k`` and ``recall@k`` of one ranked list for every k, for validation; None is a place without an item."""
    found = {"pass": pass_at_k, "recall": recall_at_k}
    return {f"{name}@{k}": metric(ranked, truth, k) for name, metric in found.items() for k in ks}
