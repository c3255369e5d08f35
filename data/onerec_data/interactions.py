"""Tasks about interaction kinds: what of one kind comes next, and will a candidate be watched for long."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data.onerec_data.batch import Batch, SidLists, to_sids
from data.onerec_data.context import Context
from data.onerec_data.layout import LABELS
from data.onerec_data.tasks import (
    HISTORY,
    MAX_TARGETS,
    NO_SID,
    TARGET,
    VIDEO_HISTORY,
    Rows,
    Sample,
    ask,
    line,
    questions,
)
from data.onerec_data.text import Draws, escaped, prompts

MAX_INTERACTIONS = 10
YES, NO = escaped("是"), escaped("否")
MASK_COLUMNS = tuple(f"{side}_video_{label}" for side in ("hist", "target") for label in LABELS)


class Interactions:
    """The user's items by interaction kind, the latest ten of each, a line a kind.

    A mask of another length than the history is counted as bad and its kind left out. Where the input has no mask at
    all, the watched videos take the lines' place.
    """

    def __init__(self, batch: Batch, context: Context, task: str) -> None:
        self._batch, self._task = batch, task
        self._kinds = {
            label: batch.chosen(HISTORY, f"hist_video_{label}", context.video, last=MAX_INTERACTIONS)
            for label in LABELS
            if batch.has(f"hist_video_{label}")
        }
        self.history = batch.sids(HISTORY, context.video, last=VIDEO_HISTORY)
        self._lengths = batch.lists(HISTORY).lengths.tolist()

    def body(self, row: int, draws: Draws) -> bytes | None:
        """The lines of a row; None, counted, where there are none."""
        batch, task = self._batch, self._task
        lines = [] if self._kinds else self._watched(row, draws)
        for label, (sids, _, wrong) in self._kinds.items():
            if wrong[row]:
                batch.bad(row, task, f"hist_video_{label} has another length than its history")
                continue
            batch.skip(row, task, "pid without SID skipped", sids.missing[row])
            if sids.text[row]:
                lines.append(line(draws, label, sids.text[row]))
        if not lines:
            batch.skip(row, task, "no interaction" if self._lengths[row] else "empty history")
            return None
        return rb"\n".join(lines)

    def _watched(self, row: int, draws: Draws) -> list[bytes]:
        self._batch.skip(row, self._task, "pid without SID skipped", self.history.missing[row])
        text = self.history.text[row]
        return [line(draws, "video", text)] if text else []


class Targets:
    """Targets of a batch by interaction kind, from the masks or from one kind a row."""

    def __init__(self, batch: Batch, context: Context, task: str) -> None:
        self._batch, self._task = batch, task
        self.all: SidLists = batch.sids(TARGET, context.video, first=MAX_TARGETS)
        self._masks = {
            label: batch.chosen(TARGET, f"target_video_{label}", context.video, first=MAX_TARGETS)
            for label in LABELS
            if batch.has(f"target_video_{label}")
        }
        self._kind = None if self._masks else batch.texts("interaction_type")

    def by_label(self, row: int) -> dict[str, SidLists]:
        """The kinds that a row's targets have; a mask of another length than the targets is counted as bad."""
        if self._kind is not None:
            return {self._kind[row]: self.all} if self._kind[row] in LABELS else {}
        found = {}
        for label, (sids, present, wrong) in self._masks.items():
            if wrong[row]:
                self._batch.bad(row, self._task, f"target_video_{label} has another length than its targets")
            elif present[row]:
                found[label] = sids
        return found


def label_cond_rec(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Interactions to the items of one interaction kind, drawn among those whose targets hold an item with a SID."""
    task = "sft_label_cond_rec"
    past, targets = Interactions(batch, context, task), Targets(batch, context, task)
    for row in rows:
        draws = context.draws(task, *batch.keys[row])
        if (body := past.body(row, draws)) is None:
            continue
        by_label = targets.by_label(row)
        if not by_label:
            batch.skip(row, task, "no target")
            continue
        usable = [label for label, sids in by_label.items() if sids.text[row]]
        if not usable:
            batch.skip(row, task, NO_SID)
            continue
        label = draws.pick(usable)
        target = by_label[label]
        batch.skip(row, task, "pid without SID skipped", target.missing[row])
        yield Sample(
            row,
            batch.keys[row],
            {"uid": batch.uid[row], "target_interaction": label},
            ask(draws, "label_cond_rec", body, prompts("recommend")["label_question"][label]),
            target.text[row],
            answer_pid=target.pids(row),
            history_pid=past.history.pids(row),
        )


def label_pred(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Interactions and a candidate to yes or no: will the user watch it for long? One sample a candidate."""
    task, past, target = "sft_label_pred", Interactions(batch, context, "sft_label_pred"), batch.lists(TARGET)
    mask, kinds = batch.lists("target_video_longview"), batch.texts("interaction_type")
    places, bounds, kept = _first(target.offsets, MAX_TARGETS)
    candidates = to_sids(context.video, target.values[places], np.arange(len(places) + 1))
    for row in rows:
        draws = context.draws(task, *batch.keys[row])
        if (body := past.body(row, draws)) is None:
            continue
        labels = _longview(batch, row, task, target, mask, kinds)
        if labels is None or not kept[row]:
            batch.skip(row, task, "no target")
            continue
        for place in range(kept[row]):
            at = bounds[row] + place
            if not candidates.text[at]:
                batch.skip(row, task, "pid without SID skipped")
                continue
            pid = int(candidates.pids(at)[0])
            choice = context.draws(task, *batch.keys[row], place)
            prompt = ask(choice, "label_pred", body, questions("label_pred"), candidate=candidates.text[at])
            facts = {"uid": batch.uid[row], "label": labels[place], "candidate_pid": pid}
            yield Sample(row, (*batch.keys[row], place, pid), facts, prompt, YES if labels[place] else NO)


def _first(offsets: np.ndarray, n: int) -> tuple[np.ndarray, list[int], list[int]]:
    """The first ``n`` places of every row: (flat places, where each row's begin, how many it has)."""
    kept = np.minimum(np.diff(offsets), n)
    bounds = np.concatenate([[0], np.cumsum(kept)])
    places = np.repeat(offsets[:-1] - bounds[:-1], kept) + np.arange(bounds[-1])
    return places, bounds.tolist(), kept.tolist()


def _longview(batch, row, task, target, mask, kinds) -> list[int] | None:
    """0 or 1 a target; None where there is no label or the mask has another length (counted)."""
    length = int(target.offsets[row + 1] - target.offsets[row])
    if mask is None:
        return None if kinds[row] is None else [int(kinds[row] == "longview")] * length
    if mask.null[row]:
        return None
    flags = mask.values[mask.offsets[row] : mask.offsets[row + 1]].tolist()
    if len(flags) != length:
        batch.bad(row, task, "target_video_longview has another length than its targets")
        return None
    return flags
