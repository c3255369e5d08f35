"""Recommendation: ranked items and SIDs against what the user took."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from benchmarks.catalogues import resolve
from benchmarks.metrics import ranking_metrics
from benchmarks.results import Scores
from benchmarks.tasks import Example
from onerec.catalog import ItemIndex
from onerec.items.decode import Hypothesis
from onerec.sid import SidSpec

COVERAGE_AT = 10


def line(
    example: Example,
    hypotheses: Sequence[Hypothesis],
    index: ItemIndex,
    policy: str,
    seed: int,
    skip: Collection[int],
    thought: str = "",
) -> dict[str, Any]:
    """A sample's line of the predictions: decoded SIDs with log-probabilities, and the items that they resolve to."""
    sids = [h.codes for h in hypotheses]
    value = {
        "uuid": example.uuid,
        "uid": example.uid,
        "answer": example.answer_ids,
        "items": resolve(index, sids, policy, seed, example.uuid, skip)[: max(len(sids), 1)],
        "sids": [list(codes) for codes in sids],
        "logprobs": [round(h.logprob, 5) for h in hypotheses],
    }
    return value | ({"thought": thought} if thought else {})


def seen_items(example: Example, index: ItemIndex, spec: SidSpec) -> set[int]:
    """The items of a row's history: as its metadata says or, where it does not, those that the prompt's SIDs name."""
    if example.history:
        return set(example.history)
    sids = spec.parse("".join(turn["content"] for turn in example.messages))
    return {pid for codes in sids for pid in index.pids_of(codes)}


def score(examples: Sequence[Example], lines: Sequence[dict[str, Any]], spec: SidSpec) -> Scores:
    """Every ranking metric of every sample at item level and, as ``sid_…``, at SID level.

    SID level is NaN where the answer text holds no SID.
    """
    rows = []
    for example, value in zip(examples, lines, strict=True):
        by_item = ranking_metrics(value["items"], example.answer_ids)
        answer = list(dict.fromkeys(spec.parse(example.answer)))
        ranked = [tuple(codes) for codes in value["sids"]]
        by_sid = ranking_metrics(ranked, answer) if answer else dict.fromkeys(by_item, math.nan)
        rows.append(by_item | {f"sid_{name}": x for name, x in by_sid.items()})
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return Scores([e.uuid for e in examples], [e.user for e in examples], columns)


def coverage(lines: Sequence[dict[str, Any]], n_items: int) -> dict[str, float]:
    """The share of the catalogue that is among anybody's first ten items."""
    recommended = {pid for value in lines for pid in value["items"][:COVERAGE_AT]}
    return {f"coverage@{COVERAGE_AT}": len(recommended) / n_items}


def valid_sid_rate(token_ids: Sequence[Sequence[int]], index: ItemIndex, spec: SidSpec) -> float:
    """The share of freely generated tokens [n][n_layers], behind a begin token, that are a SID of the catalogue."""
    first = [low for low, _ in spec.layer_ranges]
    valid = [
        len(ids) >= spec.n_layers and tuple(t - f for t, f in zip(ids, first, strict=False)) in index
        for ids in token_ids
    ]
    return sum(valid) / len(valid)
