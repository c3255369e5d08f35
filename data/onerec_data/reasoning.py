"""Recommendation with a templated thought, for logs without a chain of thought: tags of the history to a preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from data.onerec_data.batch import Batch
from data.onerec_data.context import Context
from data.onerec_data.tasks import Rows, Sample, Watched, ask, line, questions
from data.onerec_data.text import escaped, prompts
from onerec.render import THINK_CLOSE, THINK_OPEN

RECENT = 20  # watched videos whose tags speak
TOP = 2  # tags that the thought names


def favourites(tags: list[str], n: int = TOP) -> list[str]:
    """The most frequent tags, ties by first appearance."""
    return [tag for tag, _ in Counter(tags).most_common(n)]


def reco_reason(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Watch history to a thought about its tags, in a think block, and the next videos."""
    task, watched = "sft_reco_reason", Watched(batch, context, "sft_reco_reason")
    templates = prompts("understand")["thought"]
    for row in rows:
        if not watched.usable(row):
            continue
        liked = favourites(context.tags.of(watched.history.pids(row)[-RECENT:]))
        wanted = favourites(context.tags.of(watched.target.pids(row)[:1]))
        if not liked or not wanted:
            batch.skip(row, task, "no tags")
            continue
        draws = context.draws(task, *batch.keys[row])
        fields = {"liked": escaped("和".join(liked)), "wanted": escaped("、".join(wanted))}
        thought = draws.pick(templates).fill(**fields)
        prompt = ask(draws, "video_rec", line(draws, "video", watched.history.text[row]), questions("video_rec"))
        answer = escaped(f"{THINK_OPEN}\n") + thought + escaped(f"\n{THINK_CLOSE}\n\n") + watched.target.text[row]
        yield Sample(
            row,
            batch.keys[row],
            {"uid": batch.uid[row]},
            prompt,
            answer,
            answer_pid=watched.target.pids(row),
            history_pid=watched.history.pids(row),
        )
