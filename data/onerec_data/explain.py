"""Builders of the tasks in words: items and their captions, profiles, and the reasoning behind a recommendation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from data.onerec_data.batch import to_sids
from data.onerec_data.samples import PROFILE_COLUMNS, VIDEO_COLUMNS, ItemJob, Job, Sample, Watched, builder
from data.onerec_data.text import Template, escaped
from onerec.render import THINK_CLOSE, THINK_OPEN

RECENT = 20  # watched videos whose tags speak
TOP = 2  # tags that a thought names


@builder(optional=PROFILE_COLUMNS, any_of=PROFILE_COLUMNS)
def pretrain_user_profile(job: Job) -> Iterator[Sample]:
    """The user's profile, with SIDs, as plain text."""
    profiles, options = job.profiles(), job.prompts["profile_text"]
    for row in job.first_windows:
        if profiles[row] is None:
            job.skip(row, "no profile")
        else:
            yield job.sample(row, text=job.draws(row).pick(options).fill(profile=profiles[row]))


@builder(
    required=("reco_gsu_caption", "reco_target_caption", "reco_cot"),
    optional=(*PROFILE_COLUMNS, "target_pid"),
)
def sft_rec_reason(job: Job) -> Iterator[Sample]:
    """Profile, watched captions and the next video's caption to the reasoning that leads there."""
    texts, profiles, options = job.batch.texts, job.profiles(), job.prompts["reason_question"]
    watched, targets, thoughts = texts("reco_gsu_caption"), texts("reco_target_caption"), texts("reco_cot")
    target_pids = job.batch.ints("target_pid")
    for row in job.rows:
        if profiles[row] is None or targets[row] is None or thoughts[row] is None:
            job.skip(row, "no reasoning")
            continue
        fields = {"history": escaped(watched[row] or ""), "target": escaped(targets[row])}
        asked = job.draws(row).pick(options).fill(profile=profiles[row], **fields)
        facts = {"target_pid": target_pids[row]}
        yield job.sample(row, facts=facts, prompt=[("user", asked)], answer=escaped(thoughts[row]))


@builder(required=VIDEO_COLUMNS, tags=True)
def sft_reco_reason(job: Job) -> Iterator[Sample]:
    """Watch history to a thought about its tags, and the next videos: for logs without a chain of thought."""
    watched, tags, templates = Watched(job), job.context.tags, job.prompts["thought"]
    join = job.prompts["join"]
    for row in watched.usable(job.rows):
        liked = favourites(tags.of(watched.history.pids(row)[-RECENT:]))
        wanted = favourites(tags.of(watched.target.pids(row)[:1]))
        if not liked or not wanted:
            job.skip(row, "no tags")
            continue
        draws = job.draws(row)
        fields = {"liked": escaped(join["and"].join(liked)), "wanted": escaped(join["list"].join(wanted))}
        thought = draws.pick(templates).fill(**fields)
        prompt = job.ask(draws, "video_rec", job.line(draws, "video", watched.history.text[row]))
        sample = job.recommend(row, prompt, watched.target, watched.history)
        sample.answer = escaped(f"{THINK_OPEN}\n") + thought + escaped(f"\n{THINK_CLOSE}\n\n") + sample.answer
        yield sample


def favourites(tags: list[str]) -> list[str]:
    """The most frequent tags, ties by first appearance."""
    return [tag for tag, _ in Counter(tags).most_common(TOP)]


@builder(over="items")
def sft_item_understand(job: ItemJob) -> Iterator[Sample]:
    """An item's SID to its caption, as a conversation."""
    for row, facts, fields, template in _items(job, "item_question"):
        yield Sample(row, (facts["pid"],), facts, [("user", template.fill(**fields))], fields["caption"])


@builder(over="items")
def pretrain_item_understand(job: ItemJob) -> Iterator[Sample]:
    """An item's SID and caption as plain text."""
    for row, facts, fields, template in _items(job, "item_text"):
        yield Sample(row, (facts["pid"],), facts, text=template.fill(**fields))


def _items(job: ItemJob, options: str) -> Iterator[tuple[int, dict[str, Any], dict[str, bytes], Template]]:
    """(row, facts, SID and caption, wording) of the items that have a SID."""
    templates = job.context.prompts[options]
    sids = to_sids(job.context.video, np.asarray(job.pids, np.int64), np.arange(len(job.pids) + 1)).text
    for row, (pid, caption, sid) in enumerate(zip(job.pids, job.captions, sids, strict=True)):
        if sid:
            template = job.context.draws(job.task, pid).pick(templates)
            yield row, {"pid": pid, "sid": sid.decode()}, {"sid": sid, "caption": escaped(caption)}, template
