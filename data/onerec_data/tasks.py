"""The tasks as builders: a batch of users (or of items) to samples; training and benchmark use the same ones.

Semantics are those of the OpenOneRec reference scripts (github.com/Kuaishou-OneRec/OpenOneRec, data/onerec_data):
histories cut to the latest 512 videos (across domains 100 long-viewed videos, 200 ads, 100 products), targets to the
first 10, the latest 10 items of an interaction kind, pids without SID skipped, one label-prediction sample a candidate,
one interactive sample a keyword. The kind that label_cond asks for is drawn among those with an item that has a SID. One departure: the reference's pretraining sequences keep the first 512 videos of a
longer history, these the latest.

Where the input has one interaction kind a row (`interaction_type`) or a search (`query`) instead of the release's masks
and keyword table, the same tasks read those: see ``layouts/simple.json``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import orjson

from data.onerec_data.batch import Batch, SidLists, to_sids
from data.onerec_data.context import Context
from data.onerec_data.tables import SidTable
from data.onerec_data.text import Draws, Template, Turn, escaped, prompts
from onerec.parquet import whole_number

VIDEO_HISTORY, LONGVIEW_HISTORY = 512, 100
CROSS_HISTORY = {"ad": 200, "goods": 100}
MAX_TARGETS = 10
HISTORY, TARGET = "hist_video_pid", "target_video_pid"
VIDEO_COLUMNS = (HISTORY, TARGET)
CROSS_COLUMNS = (HISTORY, "hist_video_longview", "hist_longview_video_list")
PROFILE_COLUMNS = ("inter_user_profile", "inter_user_profile_with_sid")
NO_SID = "no item with a SID"
_NO_PIDS = np.empty(0, np.int64)


@dataclasses.dataclass(slots=True)
class Sample:
    """One sample: the row of its batch, what it is (``key``), prompt and answer (escaped), facts for the metadata.

    ``text`` instead of a prompt makes it plain text. ``answer_pid`` are the items of the answer, in order, and
    ``history_pid`` those that baselines may see, oldest first.
    """

    row: int
    key: tuple[object, ...]
    facts: dict[str, Any]
    prompt: Sequence[Turn] = ()
    answer: bytes = b""
    text: bytes = b""
    answer_pid: np.ndarray = dataclasses.field(default_factory=lambda: _NO_PIDS)
    history_pid: np.ndarray = dataclasses.field(default_factory=lambda: _NO_PIDS)


Rows = Sequence[int]
Builder = Callable[[Batch, Rows, Context], Iterator[Sample]]
ItemBuilder = Callable[[Sequence[int], Sequence[str], Context], Iterator[Sample]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its output name, its source tag, what it walks over (users or items) and its builder.

    ``required`` parts must have a column in the users' table, and so must one of ``any_of``; ``optional`` parts are read
    where they exist.
    ``default`` says whether it is made when no task is named.
    """

    name: str
    source: str
    over: str
    build: Builder | ItemBuilder
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    product: bool = False
    tags: bool = False
    default: bool = True

    def lacking(self, parts: Collection[str]) -> list[str]:
        """What the task needs and ``parts`` do not hold."""
        missing = [part for part in self.required if part not in parts]
        if self.any_of and not any(part in parts for part in self.any_of):
            missing.append(" or ".join(self.any_of))
        return missing


def line(draws: Draws, kind: str, sids: bytes) -> bytes:
    """A history line: what the items are, then their SIDs."""
    return draws.pick(prompts("recommend")["history"][kind]).fill() + sids


def ask(draws: Draws, task: str, body: bytes, options: Sequence[Template], **fields: bytes) -> list[Turn]:
    """The usual prompt: a system turn drawn for the task, then the body and a drawn question in one user turn."""
    system = draws.pick(prompts("recommend")["system"][task]).fill()
    question = draws.pick(options).fill(**fields)
    return [("system", system), ("user", body + rb"\n" + question if body else question)]


def questions(task: str) -> list[Template]:
    """The questions of a task."""
    return prompts("recommend")["question"][task]


class Watched:
    """Watched videos and targets of a batch, for the tasks that need both."""

    def __init__(self, batch: Batch, context: Context, task: str) -> None:
        self._batch, self._task = batch, task
        self.history: SidLists = batch.sids(HISTORY, context.video, last=VIDEO_HISTORY)
        self.target: SidLists = batch.sids(TARGET, context.video, first=MAX_TARGETS)
        self._n_history, self._n_target = (batch.lists(part).lengths.tolist() for part in VIDEO_COLUMNS)

    def usable(self, row: int) -> bool:
        """Whether history and targets both hold an item with a SID; what is left out is counted."""
        batch, task = self._batch, self._task
        if not self._n_history[row] or not self._n_target[row]:
            batch.skip(row, task, "no target" if self._n_history[row] else "empty history")
            return False
        missing = self.history.missing[row] + self.target.missing[row]
        batch.skip(row, task, "pid without SID skipped", missing)
        if not self.history.text[row] or not self.target.text[row]:
            batch.skip(row, task, NO_SID)
            return False
        return True


def video_rec(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Watch history to the next videos."""
    task, watched = "sft_video_rec", Watched(batch, context, "sft_video_rec")
    for row in rows:
        if not watched.usable(row):
            continue
        draws = context.draws(task, *batch.keys[row])
        body = line(draws, "video", watched.history.text[row])
        yield Sample(
            row,
            batch.keys[row],
            {"uid": batch.uid[row]},
            ask(draws, "video_rec", body, questions("video_rec")),
            watched.target.text[row],
            answer_pid=watched.target.pids(row),
            history_pid=watched.history.pids(row),
        )


def watch_sequence(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """The whole watch sequence as plain text; once a user, for later windows repeat parts of the first."""
    task, watched = "pretrain_video_rec", Watched(batch, context, "pretrain_video_rec")
    options = prompts("understand")["sequence_text"]
    for row in rows:
        if not batch.windows[row] and watched.usable(row):
            template = context.draws(task, *batch.keys[row]).pick(options)
            text = template.fill(history=watched.history.text[row], target=watched.target.text[row])
            yield Sample(row, batch.keys[row], {"uid": batch.uid[row]}, text=text)


def user_profile(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """The user's profile, with SIDs, as plain text; once a user."""
    task, profiles = "pretrain_user_profile", context.profiles(batch, "pretrain_user_profile")
    options = prompts("understand")["profile_text"]
    for row in rows:
        if batch.windows[row]:
            continue
        if profiles[row] is None:
            batch.skip(row, task, "no profile")
            continue
        text = context.draws(task, *batch.keys[row]).pick(options).fill(profile=profiles[row])
        yield Sample(row, batch.keys[row], {"uid": batch.uid[row]}, text=text)


def cross_domain(domain: str, table: Callable[[Context], SidTable]) -> Builder:
    """A builder for ads or products: long-viewed videos and earlier clicks to the next clicks."""
    task = {"ad": "ad_rec", "goods": "product_rec"}[domain]
    name = f"sft_{task}"

    def build(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
        targets = batch.sids(f"target_{domain}_pid", table(context), first=MAX_TARGETS)
        clicks = batch.sids(f"hist_{domain}_pid", table(context), last=CROSS_HISTORY[domain])
        longview = _long_viewed(batch, context)
        for row in rows:
            sources = [("longview", longview), (domain, clicks)]
            missing = targets.missing[row] + sum(s.missing[row] for _, s in sources if s)
            if not targets.text[row]:
                batch.skip(row, name, NO_SID if targets.missing[row] else "no target")
                continue
            draws = context.draws(name, *batch.keys[row])
            lines = [line(draws, kind, s.text[row]) for kind, s in sources if s and s.text[row]]
            batch.skip(row, name, "pid without SID skipped", missing)
            if not lines:
                batch.skip(row, name, "empty history")
                continue
            prompt = ask(draws, task, rb"\n".join(lines), questions(task))
            history = clicks.pids(row) if clicks else _NO_PIDS
            yield Sample(
                row, batch.keys[row], {"uid": batch.uid[row]}, prompt, targets.text[row],
                answer_pid=targets.pids(row), history_pid=history,
            )  # fmt: skip

    return build


def _long_viewed(batch: Batch, context: Context) -> SidLists | None:
    """The latest long-viewed videos: by the mask, or from their own list where there is no mask."""
    found = batch.chosen(HISTORY, "hist_video_longview", context.video, last=LONGVIEW_HISTORY, to_shorter=True)
    if found is not None:
        return found[0]
    return batch.sids("hist_longview_video_list", context.video, last=LONGVIEW_HISTORY)


def interactive_rec(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Profile and keyword to items; one sample a keyword."""
    task, profiles = "sft_interactive_rec", context.profiles(batch, "sft_interactive_rec")
    history = batch.sids(HISTORY, context.video, last=VIDEO_HISTORY)
    wanted = _keywords(batch, rows, task)
    pids = np.array([pid for _, _, found in wanted for pid in found], np.int64)
    ends = np.cumsum([0, *(len(found) for _, _, found in wanted)])
    items = to_sids(context.video, pids, ends)
    for at, (row, keyword, _) in enumerate(wanted):
        draws = context.draws(task, *batch.keys[row], keyword)
        profile = profiles[row]
        if profile is None and history and history.text[row] and not any(map(batch.has, PROFILE_COLUMNS)):
            profile = line(draws, "video", history.text[row])  # logs without profiles: what was watched
        if profile is None:
            batch.skip(row, task, "no profile")
            continue
        batch.skip(row, task, "pid without SID skipped", items.missing[at])
        if not items.text[at]:
            batch.skip(row, task, NO_SID)
            continue
        yield Sample(
            row,
            (*batch.keys[row], keyword),
            {"uid": batch.uid[row], "keyword": keyword},
            ask(draws, "interactive_rec", b"", questions("interactive_rec"), profile=profile, keyword=escaped(keyword)),
            items.text[at],
            answer_pid=items.pids(at),
            history_pid=history.pids(row) if history else _NO_PIDS,
        )  # fmt: skip


def _keywords(batch: Batch, rows: Rows, task: str) -> list[tuple[int, str, list[int]]]:
    """(row, keyword, its first ten pids) of every row: the keyword table, or the row's query and its targets."""
    found: list[tuple[int, str, list[int]]] = []
    tables, queries = batch.texts("inter_keyword_to_items"), batch.texts("query")
    targets = batch.lists(TARGET)
    for row in rows:
        if tables[row] is None:
            if queries[row] is None or targets is None:
                batch.skip(row, task, "no keyword")
                continue
            pids = targets.values[targets.offsets[row] : targets.offsets[row + 1]]
            found.append((row, queries[row], pids[:MAX_TARGETS].tolist()))
            continue
        try:
            pairs = orjson.loads(tables[row])
            keywords = [(k, [_pid(pid) for pid in pids[:MAX_TARGETS]]) for k, pids in pairs.items() if k and pids]
        except (ValueError, AttributeError, TypeError):
            batch.bad(row, task, "inter_keyword_to_items is not a JSON object of pid lists")
            continue
        if not keywords:
            batch.skip(row, task, "no keyword")
        found += [(row, keyword, pids) for keyword, pids in keywords]
    return found


def _pid(value: Any) -> int:
    return whole_number(int(value) if isinstance(value, str) else value)


def rec_reason(batch: Batch, rows: Rows, context: Context) -> Iterator[Sample]:
    """Profile, watched captions and the next video's caption to the reasoning that leads there."""
    task, profiles = "sft_rec_reason", context.profiles(batch, "sft_rec_reason")
    watched, targets, thoughts = (batch.texts(part) for part in ("reco_gsu_caption", "reco_target_caption", "reco_cot"))
    target_pids = batch.ints("target_pid")
    for row in rows:
        if profiles[row] is None or targets[row] is None or thoughts[row] is None:
            batch.skip(row, task, "no reasoning")
            continue
        template = context.draws(task, *batch.keys[row]).pick(prompts("understand")["reason_question"])
        asked = template.fill(profile=profiles[row], history=escaped(watched[row] or ""), target=escaped(targets[row]))
        facts = {"uid": batch.uid[row], "target_pid": target_pids[row]}
        yield Sample(row, batch.keys[row], facts, [("user", asked)], escaped(thoughts[row]))


def item_caption(pids: Sequence[int], captions: Sequence[str], context: Context) -> Iterator[Sample]:
    """An item's SID to its caption, as a conversation."""
    yield from _items(pids, captions, context, "sft_item_understand", "item_question", as_text=False)


def item_text(pids: Sequence[int], captions: Sequence[str], context: Context) -> Iterator[Sample]:
    """An item's SID and caption as plain text."""
    yield from _items(pids, captions, context, "pretrain_item_understand", "item_text", as_text=True)


def _items(pids, captions, context: Context, task: str, options: str, as_text: bool) -> Iterator[Sample]:
    templates = prompts("understand")[options]
    sids = to_sids(context.video, np.asarray(pids, np.int64), np.arange(len(pids) + 1))
    for row, (pid, caption) in enumerate(zip(pids, captions, strict=True)):
        sid = sids.text[row]
        if not sid:
            continue
        template, text = context.draws(task, pid).pick(templates), escaped(caption)
        facts = {"pid": pid, "sid": sid.decode()}
        if as_text:
            yield Sample(row, (pid,), facts, text=template.fill(sid=sid, caption=text))
        else:
            yield Sample(row, (pid,), facts, [("user", template.fill(sid=sid))], text)
