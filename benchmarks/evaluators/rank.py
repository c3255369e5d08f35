"""Recommendation: ranked items and SIDs against what the user took; where there is an item prior, with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogues import BenchData, every_sid, resolve
from benchmarks.evaluators.base import Evaluator, Result, with_thought
from benchmarks.judge import Judge
from benchmarks.metrics import ranking_metrics
from benchmarks.model import BenchModel
from benchmarks.prior import WEIGHTS, TaskPrior, prior_path
from benchmarks.results import Scores, scores_of
from benchmarks.tasks import Example, drawn_rows, fingerprint
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.items.item import Item, Prior, ranked_with_prior
from onerec.run import Manifest, progress
from onerec.sid import SidSpec

COVERAGE_AT = 10
CHOSEN_BY = "ndcg@10"  # of the prior's weights: recall@10 hardly tells those from 1 to 8 apart
# One list for everybody has ten items; twice as many, where ten times as many could be, is no recommendation either.
FEW_ITEMS, MANY_ITEMS = 2 * COVERAGE_AT, 10 * COVERAGE_AT


class RankEvaluator(Evaluator):
    """Items by a beam search over the catalogue; on request also SIDs without constraint, and narrower searches."""

    def load(self, manifest: Manifest) -> None:
        """See `Evaluator.load`."""
        super().load(manifest)
        self.manifest = manifest
        self.index = self.data.index(self.task)
        self.leave_out_seen(self.args.exclude_seen)
        self.figures: dict[str, float] = {}
        self.hybrid: Hybrid | None = None
        self.narrow: list[tuple[int, list[Example], list[dict[str, Any]]]] = []  # beam widths, prediction lines

    def leave_out_seen(self, yes: bool) -> None:
        """Whether the items of the history are never recommended."""
        self.seen = [seen_items(e, self.index, self.data.spec) if yes else set() for e in self.examples]

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`."""
        args, name = self.args, self.task.name
        spec = model.check_spec(self.data.spec, self.data.folder)
        if path := prior_path(args, self.task):
            self.hybrid = self._hybrid(path, model)
        prompts, thoughts = self.prompts(model, spec.n_layers + 1)
        found = self.ranked(self.search(model, prompts, args.num_beams, name), args.num_beams)
        lines = self.resolved(found, args.num_beams)
        self.lines = [with_thought(*pair) for pair in zip(lines, thoughts, strict=True)]
        if args.free_sids > 0:
            places = drawn_rows(len(prompts), args.free_sids, self.sample_seed)
            begun = [[*prompts[place], spec.begin_id] for place in places]
            free = model.generate(begun, spec.n_layers, [spec.end_id], f"{name}: free SIDs")
            self.figures["valid_sid"] = valid_sid_rate(free, self.index, spec)
        places = drawn_rows(len(prompts), args.beam_samples, self.sample_seed)
        for width in args.beam_widths:
            found = self.ranked(self.search(model, prompts, width, f"{name}: {width} beams", places), width, places)
            self.narrow.append((width, self._at(self.examples, places), self.resolved(found, width, places)))
        return self.lines

    def search(
        self,
        model: BenchModel,
        prompts: Sequence[list[int]],
        width: int,
        label: str,
        places: Sequence[int] | None = None,
    ) -> list[list[Item]]:
        """The best ``width`` items of the examples at ``places`` (all), by the model.

        With a prior also the ``width`` that it likes best, scored by the model: what `ranked` chooses from.
        """
        searched, also = self.index, None
        if self.hybrid:
            also = [prior.best(width) for prior in self._at(self.hybrid.priors, places)]
        elif self.args.unconstrained:
            searched = every_sid(self.data.spec)
        return model.rank_items(self._at(prompts, places), searched, width, label, self._banned(places), also)

    def ranked(self, found: list[list[Item]], width: int, places: Sequence[int] | None = None) -> list[list[Item]]:
        """What `search` found, where there is a prior the best ``width`` by both."""
        return self.hybrid.rank(found, self.hybrid.weight, width, places) if self.hybrid else found

    @staticmethod
    def _at(values: Sequence[Any], places: Sequence[int] | None) -> Sequence[Any]:
        return values if places is None else [values[place] for place in places]

    def _banned(self, places: Sequence[int] | None) -> list[list[tuple[int, ...]]] | None:
        return (
            [self.index.sids_within(pids) for pids in self._at(self.seen, places)] if self.args.exclude_seen else None
        )

    def _hybrid(self, path: Path, model: BenchModel) -> Hybrid:
        hybrid = Hybrid(self, TaskPrior(self.data.prior(path), self.index))
        if (weight := self.args.prior_weight) is not None:
            hybrid.weight, hybrid.choice = weight, "given"
        else:
            hybrid.choose(model)
        for reason, count in hybrid.left_out.items():
            self.manifest.drop(f"{self.task.name}: {reason}", count)
        print(f"{self.task.name}: {hybrid.line()}", flush=True)
        return hybrid

    def resolved(
        self, ranked: Sequence[Sequence[Item]], width: int, places: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Lines of the predictions of the examples at ``places`` (all), of at most ``width`` items."""
        rows = zip(self._at(self.examples, places), ranked, self._at(self.seen, places), strict=True)
        policy, seed = self.args.sid_to_item, self.args.seed
        return [line(e, found, self.index, policy, seed, skip, width) for e, found, skip in rows]

    def score(self, judge: Judge | None) -> Result:
        """See `Evaluator.score`."""
        scores = score(self.examples, self.lines, self.data.spec)
        figures = {**coverage(self.lines, self.index.n_items), "samples": len(self.lines), **self.figures}
        beams = [self._point(*narrow) for narrow in self.narrow]
        notes: dict[str, Any] = {"beams": beams} if beams else {}
        if self.hybrid:
            notes["prior"] = self.hybrid.note()
        return Result(scores, list(scores.columns), figures, notes)

    def doubtful(self) -> str:
        """See `Evaluator.doubtful`: the same few items for everybody."""
        few = len(recommended(self.lines))
        most = min(self.index.n_items, COVERAGE_AT * len(self.lines))
        if few > FEW_ITEMS or most < MANY_ITEMS:
            return ""
        lists = f"the first {COVERAGE_AT} items of all {len(self.lines):,} rows are {few} different ones"
        return f"{lists}: nearly one list for everybody"

    def _point(self, width: int, examples: Sequence[Example], lines: Sequence[dict[str, Any]]) -> dict[str, float]:
        recall = score(examples, lines, self.data.spec).columns
        values = {f"recall@{k}": round(float(np.mean(recall[f"recall@{k}"])), 6) for k in (1, 10, 32)}
        return {"width": width, "samples": len(lines), **values}


class Hybrid:
    """A model and an item prior that rank together: the prior of every test row, the weight and how it was chosen."""

    def __init__(self, evaluator: RankEvaluator, prior: TaskPrior) -> None:
        self.evaluator, self.index, self.prior = evaluator, evaluator.index, prior
        self.priors = self._priors(evaluator)
        self.weight = 0.0
        self.choice: str | dict[str, Any] = "given"
        unknown = sum(not len(prior.rows) for prior in self.priors)
        if unknown == len(self.priors) and not self.prior.file.follows:
            what = f"names none of the {unknown:,} rows of {evaluator.task.name} by {self.prior.file.key}"
            raise InputError(
                self.prior.file.path, what, "scores of those rows; --prior_weight where validation rows have none"
            )
        self.left_out = {"pid of the prior is not in the catalogue": self.prior.unknown}
        self.left_out["the prior says nothing, so the model alone ranks"] = unknown

    def _priors(self, evaluator: RankEvaluator) -> list[Prior]:
        spec = evaluator.data.spec
        rows = zip(evaluator.examples, evaluator.seen, strict=True)
        return [self.prior(e, history_of(e, self.index, spec), skip) for e, skip in rows]

    def rank(
        self, found: Sequence[Sequence[Item]], weight: float, width: int, places: Sequence[int] | None = None
    ) -> list[list[Item]]:
        """The best ``width`` of the candidates of the rows at ``places`` (all), by ``score + weight · log prior``."""
        return [ranked_with_prior(*pair, weight, width) for pair in zip(found, self.logs(found, places), strict=True)]

    def logs(self, found: Sequence[Sequence[Item]], places: Sequence[int] | None = None) -> list[np.ndarray]:
        """The logarithm of the prior of every candidate of the rows at ``places`` (all), float32."""
        logs = []
        priors = self.priors if places is None else [self.priors[place] for place in places]
        for items, prior in zip(found, priors, strict=True):
            codes = np.array([item.codes for item in items], np.int64).reshape(-1, self.index.spec.n_layers)
            logs.append(prior.of(self.index.rows_of(codes)))
        return logs

    def choose(self, model: BenchModel) -> None:
        """Choose the weight that ranks the validation users best, by ndcg@10; of equal ones the smaller.

        Their candidates are found and scored once, for all weights. Raises `InputError` where they have other SIDs.
        """
        args, task = self.evaluator.args, self.evaluator.task
        asked = argparse.Namespace(**vars(args) | {"sample_size": args.validation_users})
        other = RankEvaluator(task, BenchData(args.validation_dir, args.item_count), asked)
        other.load(Manifest("validation", {}))
        if other.index.digest != self.index.digest:
            raise InputError(args.validation_dir, "has other SIDs than the test data", "both of one pid2sid.parquet")
        other.hybrid = Hybrid(other, TaskPrior(self.prior.file, other.index))
        prompts, _ = other.prompts(model, self.index.spec.n_layers + 1)
        found = other.search(model, prompts, args.num_beams, f"{task.name}: validation")
        pairs, curve = list(zip(found, other.hybrid.logs(found), strict=True)), []
        for weight in progress(WEIGHTS, f"{task.name}: weights of the prior", unit="weight"):
            best = [ranked_with_prior(*pair, weight, args.num_beams) for pair in pairs]
            lines = other.resolved(best, args.num_beams)
            columns = score(other.examples, lines, other.data.spec).columns
            values = {name: round(float(columns[name].mean()), 6) for name in (task.headline, CHOSEN_BY)}
            curve.append({"weight": weight} | values)
        self.weight = max(curve, key=lambda point: (point[CHOSEN_BY], -point["weight"]))["weight"]
        data = fingerprint(args.validation_dir, task.name)
        self.choice = {"metric": CHOSEN_BY, "users": len(other.examples), "data": data, "curve": curve}

    def note(self) -> dict[str, Any]:
        """For metrics.json: the file's content and form, the weight, how it was chosen, what was left out."""
        file = self.prior.file
        left_out = {reason: count for reason, count in self.left_out.items() if count}
        return {
            "content": file.digest,
            "key": file.key,
            "weight": self.weight,
            "chosen": self.choice,
            "left_out": left_out,
        }

    def line(self) -> str:
        """For the log."""
        said = [f"prior {self.prior.file.digest} by {self.prior.file.key}, weight {self.weight:g}"]
        if isinstance(self.choice, str):
            said[0] += f" ({self.choice})"
        else:
            metric, users = self.choice["metric"], self.choice["users"]
            points = ", ".join(f"{point['weight']:g}: {point[metric]:.4f}" for point in self.choice["curve"])
            said[0] += f", the best {metric} of {users:,} validation users ({points})"
        return "; ".join([*said, *(f"{reason}: {count:,}" for reason, count in self.left_out.items() if count)])


def line(
    example: Example,
    hypotheses: Sequence[Item],
    index: ItemIndex,
    policy: str,
    seed: int,
    skip: Collection[int],
    width: int,
) -> dict[str, Any]:
    """A sample's line of the predictions: decoded SIDs with log-probabilities, and the first ``width`` items that they
    resolve to.
    """
    sids = [h.codes for h in hypotheses]
    return {
        "uuid": example.uuid,
        "uid": example.uid,
        "answer": example.answer_ids,
        "items": resolve(index, sids, policy, seed, example.uuid, skip)[:width],
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
