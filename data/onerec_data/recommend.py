"""Builders of the tasks that recommend: a batch of users to samples; training and benchmark use the same ones.

Semantics are those of the OpenOneRec reference scripts (github.com/Kuaishou-OneRec/OpenOneRec, data/onerec_data):
histories cut to the latest 512 videos (across domains 100 long-viewed videos, 200 ads, 100 products), targets to the
first 10, the latest 10 items of an interaction kind, pids without SID skipped, one label-prediction sample a candidate,
one interactive sample a keyword. The kind that label_cond asks for is drawn among those with an item that has a SID.
One departure: the reference's pretraining sequences keep the first 512 videos of a longer history, these the latest.

Where the input has one interaction kind a row (`interaction_type`) or a search (`query`) instead of the release's masks
and keyword table, the same tasks read those: see ``layouts/simple.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from data.onerec_data.batch import SidLists, to_sids
from data.onerec_data.samples import (
    HISTORY,
    MAX_TARGETS,
    NO_SID,
    PROFILE_COLUMNS,
    SKIPPED,
    TARGET,
    VIDEO_COLUMNS,
    Job,
    Sample,
    Watched,
    builder,
)
from data.onerec_data.tables import SidTable
from data.onerec_data.text import escaped
from onerec.parquet import whole_number

LONGVIEW_HISTORY = 100
CROSS_HISTORY = {"ad": 200, "goods": 100}
CROSS_COLUMNS = (HISTORY, "hist_video_longview", "hist_longview_video_list")


@builder(required=VIDEO_COLUMNS)
def sft_video_rec(job: Job) -> Iterator[Sample]:
    """Watch history to the next videos."""
    watched = Watched(job)
    for row in watched.usable(job.rows):
        draws = job.draws(row)
        prompt = job.ask(draws, job.task.topic, job.line(draws, "video", watched.history.text[row]))
        yield job.recommend(row, prompt, watched.target, watched.history)


@builder(required=VIDEO_COLUMNS)
def pretrain_video_rec(job: Job) -> Iterator[Sample]:
    """The whole watch sequence as plain text."""
    watched, options = Watched(job), job.prompts["sequence_text"]
    for row in watched.usable(job.first_windows):
        template = job.draws(row).pick(options)
        text = template.fill(history=watched.history.text[row], target=watched.target.text[row])
        yield job.sample(row, text=text)


@builder(required=("hist_ad_pid", "target_ad_pid"), optional=CROSS_COLUMNS)
def sft_ad_rec(job: Job) -> Iterator[Sample]:
    """Long-viewed videos and ad clicks to the next ads."""
    return _cross_domain(job, "ad", job.context.video)


@builder(required=("hist_goods_pid", "target_goods_pid"), optional=CROSS_COLUMNS)
def sft_product_rec(job: Job) -> Iterator[Sample]:
    """Long-viewed videos and product clicks to the next products."""
    return _cross_domain(job, "goods", job.context.product)


def _cross_domain(job: Job, domain: str, table: SidTable) -> Iterator[Sample]:
    targets = job.batch.sids(f"target_{domain}_pid", table, first=MAX_TARGETS)
    clicks = job.batch.sids(f"hist_{domain}_pid", table, last=CROSS_HISTORY[domain])
    sources = [(kind, s) for kind, s in (("longview", _long_viewed(job)), (domain, clicks)) if s]
    for row in job.rows:
        if not targets.text[row]:
            job.skip(row, NO_SID if targets.missing[row] else "no target")
            continue
        draws = job.draws(row)
        lines = [job.line(draws, kind, s.text[row]) for kind, s in sources if s.text[row]]
        job.skip(row, SKIPPED, targets.missing[row] + sum(s.missing[row] for _, s in sources))
        if not lines:
            job.skip(row, "empty history")
            continue
        yield job.recommend(row, job.ask(draws, job.task.topic, rb"\n".join(lines)), targets, clicks)


def _long_viewed(job: Job) -> SidLists | None:
    """The latest long-viewed videos: by the mask, or from their own list where there is no mask."""
    batch, table = job.batch, job.context.video
    found = batch.chosen(HISTORY, "hist_video_longview", table, last=LONGVIEW_HISTORY, to_shorter=True)
    return found[0] if found else batch.sids("hist_longview_video_list", table, last=LONGVIEW_HISTORY)


@builder(
    required=VIDEO_COLUMNS,
    optional=(*PROFILE_COLUMNS, "inter_keyword_to_items", "query"),
    any_of=("inter_keyword_to_items", "query"),
)
def sft_interactive_rec(job: Job) -> Iterator[Sample]:
    """Profile and keyword to items; one sample a keyword."""
    history, profiles, wanted = job.history, job.profiles(), list(_keywords(job))
    pids = np.array([pid for _, _, found in wanted for pid in found], np.int64)
    items = to_sids(job.context.video, pids, np.cumsum([0, *(len(found) for _, _, found in wanted)]))
    without_profiles = not any(map(job.batch.has, PROFILE_COLUMNS))
    for at, (row, keyword, _) in enumerate(wanted):
        draws, profile = job.draws(row, keyword), profiles[row]
        if profile is None and without_profiles and history.text[row]:
            profile = job.line(draws, "video", history.text[row])  # what was watched stands for it
        if profile is None:
            job.skip(row, "no profile")
            continue
        job.skip(row, SKIPPED, items.missing[at])
        if not items.text[at]:
            job.skip(row, NO_SID)
            continue
        prompt = job.ask(draws, job.task.topic, b"", profile=profile, keyword=escaped(keyword))
        yield job.recommend(row, prompt, items, history, at, key=(keyword,), facts={"keyword": keyword})


def _keywords(job: Job) -> Iterator[tuple[int, str, list[int]]]:
    """(row, keyword, its first ten pids): of the keyword table, or the row's query and its targets."""
    tables, queries = job.batch.texts("inter_keyword_to_items"), job.batch.texts("query")
    targets = job.batch.lists(TARGET)
    for row in job.rows:
        if tables[row] is None and queries[row] is None:
            job.skip(row, "no keyword")
        elif tables[row] is None:
            yield row, queries[row], targets.row(row)[:MAX_TARGETS].tolist()
        else:
            try:
                pairs = orjson.loads(tables[row]).items()
                found = [(row, k, [_pid(pid) for pid in pids[:MAX_TARGETS]]) for k, pids in pairs if k and pids]
            except (ValueError, AttributeError, TypeError):
                job.bad(row, "inter_keyword_to_items is not a JSON object of pid lists")
                continue
            if not found:
                job.skip(row, "no keyword")
            yield from found


def _pid(value: Any) -> int:
    return whole_number(int(value) if isinstance(value, str) else value)
