"""Recommendation: ranked items and SIDs against what the user took."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from benchmarks.catalogues import every_sid, resolve
from benchmarks.evaluators.base import Evaluator, Result, with_thought
from benchmarks.judge import Judge
from benchmarks.metrics import ranking_metrics
from benchmarks.model import BenchModel
from benchmarks.results import Scores, scores_of
from benchmarks.tasks import Example, drawn_rows
from onerec.catalog import ItemIndex
from onerec.items.item import Item
from onerec.run import Manifest
from onerec.sid import SidSpec

COVERAGE_AT = 10
# One list for everybody has ten items; twice as many, where ten times as many could be, is no recommendation either.
FEW_ITEMS, MANY_ITEMS = 2 * COVERAGE_AT, 10 * COVERAGE_AT


class RankEvaluator(Evaluator):
    """Items by a beam search over the catalogue; on request also SIDs without constraint, and narrower searches."""

    def load(self, manifest: Manifest) -> None:
        """See `Evaluator.load`."""
        super().load(manifest)
        self.index = self.data.index(self.task)
        self.leave_out_seen(self.args.exclude_seen)
        self.figures: dict[str, float] = {}
        self.narrow: list[tuple[int, list[Example], list[dict[str, Any]]]] = []  # beam widths, prediction lines

    def leave_out_seen(self, yes: bool) -> None:
        """Whether the items of the history are never recommended."""
        self.seen = [seen_items(e, self.index, self.data.spec) if yes else set() for e in self.examples]

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`."""
        args, name = self.args, self.task.name
        spec = model.check_spec(self.data.spec, self.data.folder)
        prompts, thoughts = self.prompts(model, spec.n_layers + 1)
        searched = every_sid(spec) if args.unconstrained else self.index
        banned = [self.index.sids_within(pids) for pids in self.seen] if args.exclude_seen else None
        found = model.rank_items(prompts, searched, args.num_beams, name, banned)
        self.lines = [with_thought(*pair) for pair in zip(self.resolved(found), thoughts, strict=True)]
        if args.free_sids > 0:
            places = drawn_rows(len(prompts), args.free_sids, self.sample_seed)
            begun = [[*prompts[place], spec.begin_id] for place in places]
            free = model.generate(begun, spec.n_layers, [spec.end_id], f"{name}: free SIDs")
            self.figures["valid_sid"] = valid_sid_rate(free, self.index, spec)
        places = drawn_rows(len(prompts), args.beam_samples, self.sample_seed)
        for width in args.beam_widths:
            some = [prompts[place] for place in places], banned and [banned[place] for place in places]
            found = model.rank_items(some[0], searched, width, f"{name}: {width} beams", some[1])
            self.narrow.append((width, [self.examples[place] for place in places], self.resolved(found, places)))
        return self.lines

    def resolved(self, ranked: Sequence[Sequence[Item]], places: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Lines of the predictions of the examples at ``places`` (all)."""
        places = range(len(self.examples)) if places is None else places
        rows = [(self.examples[place], found, self.seen[place]) for place, found in zip(places, ranked, strict=True)]
        return [line(e, found, self.index, self.args.sid_to_item, self.args.seed, skip) for e, found, skip in rows]

    def score(self, judge: Judge | None) -> Result:
        """See `Evaluator.score`."""
        scores = score(self.examples, self.lines, self.data.spec)
        figures = {**coverage(self.lines, self.index.n_items), "samples": len(self.lines), **self.figures}
        beams = [self._point(*narrow) for narrow in self.narrow]
        return Result(scores, list(scores.columns), figures, {"beams": beams} if beams else {})

    def doubtful(self) -> str:
        """See `Evaluator.doubtful`: the same few items for everybody."""
        few = len(recommended(self.lines))
        most = min(self.index.n_items, COVERAGE_AT * len(self.lines))
        if few > FEW_ITEMS or most < MANY_ITEMS:
            return ""
        return f"all {len(self.lines):,} rows get the same {few} items, coverage@{COVERAGE_AT} is near zero"

    def _point(self, width: int, examples: Sequence[Example], lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        recall = score(examples, lines, self.data.spec).columns
        values = {f"recall@{k}": round(float(np.mean(recall[f"recall@{k}"])), 6) for k in (1, 10, 32)}
        return {"width": width, "samples": len(lines), **values}


def line(
    example: Example, hypotheses: Sequence[Item], index: ItemIndex, policy: str, seed: int, skip: Collection[int]
) -> dict[str, Any]:
    """A sample's line of the predictions: decoded SIDs with log-probabilities, and the items that they resolve to."""
    sids = [h.codes for h in hypotheses]
    return {
        "uuid": example.uuid,
        "uid": example.uid,
        "answer": example.answer_ids,
        "items": resolve(index, sids, policy, seed, example.uuid, skip)[: max(len(sids), 1)],
        "sids": [list(codes) for codes in sids],
        "logprobs": [round(h.score, 5) for h in hypotheses],
    }


def prompt_items(example: Example, index: ItemIndex, spec: SidSpec) -> list[list[int]]:
    """The items of every SID in a row's prompt, oldest first; those that name none are left out."""
    sids = spec.parse("".join(turn["content"] for turn in example.messages))
    return [pids for codes in sids if (pids := list(index.pids_of(codes)))]


def seen_items(example: Example, index: ItemIndex, spec: SidSpec) -> set[int]:
    """The items of a row's history: as its metadata says or, where it does not, those that the prompt's SIDs name."""
    return set(example.history) or {pid for pids in prompt_items(example, index, spec) for pid in pids}


def history_of(example: Example, index: ItemIndex, spec: SidSpec) -> list[int]:
    """The row's history, oldest first; where the file does not say it, the first item of every SID in the prompt."""
    return example.history or [pids[0] for pids in prompt_items(example, index, spec)]


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
    return scores_of(examples, columns)


def coverage(lines: Sequence[dict[str, Any]], n_items: int) -> dict[str, float]:
    """The share of the catalogue that is among anybody's first ten items."""
    return {f"coverage@{COVERAGE_AT}": len(recommended(lines)) / n_items}


def recommended(lines: Sequence[dict[str, Any]]) -> set[int]:
    """The items among anybody's first ten."""
    return {pid for value in lines for pid in value["items"][:COVERAGE_AT]}


def valid_sid_rate(token_ids: Sequence[Sequence[int]], index: ItemIndex, spec: SidSpec) -> float:
    """The share of freely generated tokens [n][n_layers], behind a begin token, that are a SID of the catalogue."""
    first = [low for low, _ in spec.layer_ranges]
    valid = [
        len(ids) >= spec.n_layers and tuple(t - f for t, f in zip(ids, first, strict=False)) in index
        for ids in token_ids
    ]
    return sum(valid) / len(valid)
