"""Builders about interaction kinds: what of one kind comes next, and will a candidate be watched for long."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.onerec_data.batch import SidLists, ranges, to_sids
from data.onerec_data.layout import LABELS
from data.onerec_data.samples import (
    HISTORY,
    MAX_TARGETS,
    NO_SID,
    SKIPPED,
    TARGET,
    VIDEO_COLUMNS,
    Job,
    Sample,
    builder,
)
from data.onerec_data.text import Draws, escaped

MAX_INTERACTIONS = 10
MASK_COLUMNS = tuple(f"{side}_video_{label}" for side in ("hist", "target") for label in LABELS)


class Interactions:
    """The user's items by interaction kind, the latest ten of each, a line a kind.

    A mask of another length than the history is counted as bad and its kind left out. Where the input has no mask at
    all, the watched videos take the lines' place.
    """

    def __init__(self, job: Job) -> None:
        self._job, self.history = job, job.history
        self._kinds = _by_label(job, HISTORY, "hist", last=MAX_INTERACTIONS)
        self._lengths = job.batch.lists(HISTORY).lengths.tolist()

    def body(self, row: int, draws: Draws) -> bytes | None:
        """The lines of a row; None, counted, where there are none."""
        job, lines = self._job, []
        kinds = self._kinds or {"video": (self.history, None, None)}
        for label, (sids, _, wrong) in kinds.items():
            if wrong is not None and wrong[row]:
                job.bad(row, f"hist_video_{label} has another length than its history")
                continue
            job.skip(row, SKIPPED, sids.missing[row])
            if sids.text[row]:
                lines.append(job.line(draws, label, sids.text[row]))
        if not lines:
            job.skip(row, "no interaction" if self._lengths[row] else "empty history")
            return None
        return rb"\n".join(lines)


def _by_label(job: Job, items: str, side: str, **cut: int) -> dict[str, tuple[SidLists, np.ndarray, np.ndarray]]:
    """`Batch.chosen` by interaction kind, of the kinds that the input has a mask of."""
    masks = {label: f"{side}_video_{label}" for label in LABELS}
    chosen = {label: job.batch.chosen(items, mask, job.context.video, **cut) for label, mask in masks.items()}
    return {label: found for label, found in chosen.items() if found}


class Targets:
    """Targets of a batch by interaction kind, from the masks or from one kind a row."""

    def __init__(self, job: Job) -> None:
        self._job, self._all = job, job.targets
        self._masks = _by_label(job, TARGET, "target", first=MAX_TARGETS)
        self._kind = None if self._masks else job.batch.texts("interaction_type")

    def by_label(self, row: int) -> dict[str, SidLists]:
        """The kinds that a row's targets have; a mask of another length than the targets is counted as bad."""
        if self._kind is not None:
            return {self._kind[row]: self._all} if self._kind[row] in LABELS else {}
        found = {}
        for label, (sids, present, wrong) in self._masks.items():
            if wrong[row]:
                self._job.bad(row, f"target_video_{label} has another length than its targets")
            elif present[row]:
                found[label] = sids
        return found


@builder(
    required=VIDEO_COLUMNS,
    optional=(*MASK_COLUMNS, "interaction_type"),
    any_of=(*(f"target_video_{label}" for label in LABELS), "interaction_type"),
)
def sft_label_cond_rec(job: Job) -> Iterator[Sample]:
    """Interactions to the items of one interaction kind, drawn among those whose targets hold an item with a SID."""
    past, targets, questions = Interactions(job), Targets(job), job.prompts["label_question"]
    for row in job.rows:
        draws = job.draws(row)
        if (body := past.body(row, draws)) is None:
            continue
        by_label = targets.by_label(row)
        usable = [label for label, sids in by_label.items() if sids.text[row]]
        if not usable:
            job.skip(row, NO_SID if by_label else "no target")
            continue
        label = draws.pick(usable)
        target = by_label[label]
        job.skip(row, SKIPPED, target.missing[row])
        prompt = job.ask(draws, job.task.topic, body, questions[label])
        yield job.recommend(row, prompt, target, past.history, facts={"target_interaction": label})


@builder(
    required=VIDEO_COLUMNS,
    optional=(*MASK_COLUMNS, "interaction_type"),
    any_of=("target_video_longview", "interaction_type"),
)
def sft_label_pred(job: Job) -> Iterator[Sample]:
    """Interactions and a candidate to yes or no: will the user watch it for long? One sample a candidate."""
    past, target = Interactions(job), job.batch.lists(TARGET)
    answers = list(map(escaped, job.prompts.words.yes_no))
    kept = np.minimum(target.lengths, MAX_TARGETS)
    places, bounds = ranges(target.offsets[:-1], target.offsets[:-1] + kept)
    candidates = to_sids(job.context.video, target.values[places], np.arange(len(places) + 1))
    for row in job.rows:
        if (body := past.body(row, job.draws(row))) is None:
            continue
        labels = _longview(job, row)
        if not labels or not kept[row]:
            job.skip(row, "no target")
            continue
        for place in range(kept[row]):
            at = int(bounds[row]) + place
            if not candidates.text[at]:
                job.skip(row, SKIPPED)
                continue
            label, pid = labels[place], int(candidates.pids(at)[0])
            prompt = job.ask(job.draws(row, place), job.task.topic, body, candidate=candidates.text[at])
            facts = {"label": label, "candidate_pid": pid}
            yield job.sample(row, (place, pid), facts, prompt=prompt, answer=answers[1 - label])


def _longview(job: Job, row: int) -> list[int] | None:
    """0 or 1 a target; None where there is no label or the mask has another length (counted)."""
    batch, target = job.batch, job.batch.lists(TARGET)
    length, mask = len(target.row(row)), batch.lists("target_video_longview")
    if mask is None:
        kind = batch.texts("interaction_type")[row]
        return None if kind is None else [int(kind == "longview")] * length
    if mask.null[row]:
        return None
    flags = mask.row(row).tolist()
    if len(flags) != length:
        job.bad(row, "target_video_longview has another length than its targets")
        return None
    return flags
