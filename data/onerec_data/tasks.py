"""The tasks as builders: a user's row (or an item) to samples; training and benchmark use the same ones.

Semantics are those of the OpenOneRec reference scripts (github.com/Kuaishou-OneRec/OpenOneRec, data/onerec_data):
histories cut to the latest 512 videos (100 long-viewed ones and 200 ads or products across domains), targets to the
first 10, at most 10 items an interaction kind, pids without SID skipped, one label-prediction sample a candidate, one
interactive sample a keyword.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

from data.onerec_data.context import Context, SidTable, int_list, prompts
from onerec.records import Message, Record, chat_record, message, record_uuid, text_record

VIDEO_HISTORY, LONGVIEW_HISTORY, CROSS_HISTORY = 512, 100, 200
MAX_TARGETS = MAX_INTERACTIONS = 10
LABELS = ("longview", "like", "follow", "forward", "not_interested")
YES, NO = "是", "否"
VIDEO_COLUMNS = ("hist_video_pid", "target_video_pid")
MASK_COLUMNS = tuple(f"{side}_video_{label}" for side in ("hist", "target") for label in LABELS)
PROFILE_COLUMNS = ("inter_user_profile", "inter_user_profile_with_sid")


@dataclasses.dataclass(frozen=True)
class Sample:
    """One sample of a task: what it is (``key``), the prompt, the answer, and facts for the metadata.

    ``texts`` instead of a prompt makes it plain text. ``answer_pid`` are the items of the answer, in order, and
    ``history_pid`` those that baselines may see, oldest first.
    """

    key: tuple[object, ...]
    prompt: list[Message] = dataclasses.field(default_factory=list)
    answer: str = ""
    texts: tuple[str, ...] = ()
    answer_pid: tuple[int, ...] = ()
    history_pid: tuple[int, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


Builder = Callable[[dict[str, Any], Context], Iterator[Sample]]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its output name, its source tag, what it walks over (users or items) and its builder.

    ``required`` columns must be in the users' table; ``optional`` ones are read where they exist.
    """

    name: str
    source: str
    over: str
    build: Builder
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    product: bool = False

    def records(self, row: dict[str, Any], context: Context) -> Iterator[Record]:
        """Training records of one row."""
        for sample in self.build(row, context):
            uuid = record_uuid(self.name, *sample.key)
            if sample.texts:
                yield text_record(uuid, self.source, sample.facts, sample.texts)
            else:
                yield chat_record(
                    uuid, self.source, sample.facts, [*sample.prompt, message("assistant", sample.answer)]
                )


def ask(context: Context, task: str, uid: object, body: str, question: str) -> list[Message]:
    """The usual prompt: a system turn drawn for the task, then the body and the question in one user turn."""
    system = context.draw(prompts("recommend")["system"][task], task, "system", uid)
    return [message("system", system), message("user", f"{body}\n{question}" if body else question)]


def line(context: Context, kind: str, task: str, uid: object, sids: str) -> str:
    """A history line: what the items are, then their SIDs."""
    return context.draw(prompts("recommend")["history"][kind], task, kind, uid) + sids


def question(context: Context, task: str, *what: object) -> str:
    """A question drawn for the task."""
    return context.draw(prompts("recommend")["question"][task], task, "question", *what)


def watched(row: dict[str, Any], context: Context, task: str) -> tuple[str, list[int], str, list[int]] | None:
    """(history SIDs, history pids, target SIDs, target pids) of the videos; None, counted, where one is empty."""
    history = int_list(row["hist_video_pid"])[-VIDEO_HISTORY:]
    target = int_list(row["target_video_pid"])[:MAX_TARGETS]
    if not history:
        return context.skip(task, "empty history")
    if not target:
        return context.skip(task, "no target")
    (history_sids, history), (target_sids, target) = (
        context.sids(p, context.video, task) for p in (history, target)
    )
    if not history or not target:
        return context.skip(task, "no item with a SID")
    return history_sids, history, target_sids, target


def video_rec(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """Watch history to the next videos."""
    if (found := watched(row, context, "sft_video_rec")) is None:
        return
    history_sids, history, target_sids, target = found
    uid = row["uid"]
    body = line(context, "video", "video_rec", uid, history_sids)
    prompt = ask(context, "video_rec", uid, body, question(context, "video_rec", uid))
    yield Sample((uid, row["split"]), prompt, target_sids, (), tuple(target), tuple(history), {"uid": uid})


def watch_sequence(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """The whole watch sequence as plain text."""
    if (found := watched(row, context, "pretrain_video_rec")) is None:
        return
    history_sids, _, target_sids, _ = found
    template = context.draw(prompts("understand")["sequence_text"], "video_rec_text", row["uid"])
    text = template.format(history=history_sids, target=target_sids)
    yield Sample((row["uid"], row["split"]), texts=(text,), facts={"uid": row["uid"]})


def user_profile(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """The user's profile, with SIDs, as plain text."""
    if (profile := context.profile(row, "pretrain_user_profile")) is None:
        return context.skip("pretrain_user_profile", "no profile")
    template = context.draw(prompts("understand")["profile_text"], "user_profile", row["uid"])
    yield Sample(
        (row["uid"], row["split"]), texts=(template.format(profile=profile),), facts={"uid": row["uid"]}
    )


def interactions(row: dict[str, Any], context: Context, task: str) -> str | None:
    """The user's items by interaction kind, a line each, at most the latest ten; None, counted, where there are none."""
    history = int_list(row["hist_video_pid"])
    lines = []
    for label in LABELS:
        mask = row.get(f"hist_video_{label}")
        if mask is None:
            continue
        if len(mask) != len(row["hist_video_pid"] or []):
            return context.bad(f"sft_{task}", f"hist_video_{label} has another length than its history")
        chosen = [
            pid
            for pid, value in zip(row["hist_video_pid"], mask, strict=True)
            if value == 1 and pid is not None
        ]
        sids, known = context.sids(chosen[-MAX_INTERACTIONS:], context.video, f"sft_{task}")
        if known:
            lines.append(line(context, label, task, row["uid"], sids))
    if not lines:
        return context.skip(f"sft_{task}", "empty history" if not history else "no interaction")
    return "\n".join(lines)


def target_with(row: dict[str, Any], context: Context, task: str, label: str) -> list[int] | None:
    """Targets whose mask for ``label`` is set; None, counted, where the mask has another length."""
    mask, target = row.get(f"target_video_{label}"), row["target_video_pid"] or []
    if mask is None:
        return []
    if len(mask) != len(target):
        return context.bad(f"sft_{task}", f"target_video_{label} has another length than its targets")
    return [int(pid) for pid, value in zip(target, mask, strict=True) if value == 1 and pid is not None]


def label_cond_rec(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """Interactions to the items of one interaction kind, drawn among those present in the targets."""
    task, uid = "label_cond_rec", row["uid"]
    if (body := interactions(row, context, task)) is None:
        return
    by_label = {label: target_with(row, context, task, label) for label in LABELS}
    if None in by_label.values():
        return
    present = [label for label, pids in by_label.items() if pids]
    if not present:
        return context.skip(f"sft_{task}", "no target")
    label = context.draw(present, task, "label", uid)
    sids, target = context.sids(by_label[label][:MAX_TARGETS], context.video, f"sft_{task}")
    if not target:
        return context.skip(f"sft_{task}", "no item with a SID")
    asked = context.draw(prompts("recommend")["label_question"][label], task, "question", uid)
    history = tuple(int_list(row["hist_video_pid"])[-VIDEO_HISTORY:])
    facts = {"uid": uid, "target_interaction": label}
    yield Sample(
        (uid, row["split"]), ask(context, task, uid, body, asked), sids, (), tuple(target), history, facts
    )


def label_pred(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """Interactions and a candidate to yes or no: will the user watch it for long? One sample a candidate."""
    task, uid = "label_pred", row["uid"]
    if (body := interactions(row, context, task)) is None:
        return
    mask, target = row.get("target_video_longview"), row["target_video_pid"] or []
    if mask is None or not len(target):
        return context.skip(f"sft_{task}", "no target")
    if len(mask) != len(target):
        return context.bad(f"sft_{task}", "target_video_longview has another length than its targets")
    for place, (pid, value) in enumerate(zip(target[:MAX_TARGETS], mask[:MAX_TARGETS], strict=True)):
        candidate, known = context.sids([] if pid is None else [int(pid)], context.video, f"sft_{task}")
        if not known:
            continue
        asked = question(context, task, uid, place).format(candidate=candidate)
        answer = YES if value == 1 else NO
        facts = {"uid": uid, "label": int(value == 1), "candidate_pid": known[0]}
        key = (uid, row["split"], place, known[0])
        yield Sample(key, ask(context, task, f"{uid}/{place}", body, asked), answer, facts=facts)


def cross_domain(domain: str, table: Callable[[Context], SidTable]) -> Builder:
    """A builder for ads or products: long-viewed videos and earlier clicks to the next clicks."""
    task = {"ad": "ad_rec", "goods": "product_rec"}[domain]

    def build(row: dict[str, Any], context: Context) -> Iterator[Sample]:
        uid, name = row["uid"], f"sft_{task}"
        target_sids, target = context.sids(
            int_list(row[f"target_{domain}_pid"])[:MAX_TARGETS], table(context), name
        )
        if not target:
            return context.skip(name, "no target")
        longview = int_list(row.get("hist_longview_video_list"))[-LONGVIEW_HISTORY:]
        clicks = int_list(row[f"hist_{domain}_pid"])[-CROSS_HISTORY:]
        (video_sids, longview), (click_sids, clicks) = (
            context.sids(longview, context.video, name),
            context.sids(clicks, table(context), name),
        )
        lines = [line(context, "longview", task, uid, video_sids)] if longview else []
        lines += [line(context, domain, task, uid, click_sids)] if clicks else []
        if not lines:
            return context.skip(name, "empty history")
        prompt = ask(context, task, uid, "\n".join(lines), question(context, task, uid))
        yield Sample((uid, row["split"]), prompt, target_sids, (), tuple(target), tuple(clicks), {"uid": uid})

    return build


def interactive_rec(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """Profile and keyword to items; one sample a keyword."""
    task, uid = "interactive_rec", row["uid"]
    if (profile := context.profile(row, f"sft_{task}")) is None:
        return context.skip(f"sft_{task}", "no profile")
    value = row.get("inter_keyword_to_items")
    if not isinstance(value, str) or not value.strip():
        return context.skip(f"sft_{task}", "no keyword")
    try:
        keywords = json.loads(value)
        items = {str(k): [int(pid) for pid in pids] for k, pids in keywords.items() if k and pids}
    except (ValueError, AttributeError, TypeError):
        return context.bad(f"sft_{task}", "inter_keyword_to_items is not a JSON object of pid lists")
    history = tuple(int_list(row.get("hist_video_pid"))[-VIDEO_HISTORY:])
    for keyword, pids in items.items():
        sids, target = context.sids(pids[:MAX_TARGETS], context.video, f"sft_{task}")
        if not target:
            context.skip(f"sft_{task}", "no item with a SID")
            continue
        asked = question(context, task, uid, keyword).format(profile=profile, keyword=keyword)
        key, facts = (uid, row["split"], keyword), {"uid": uid, "keyword": keyword}
        yield Sample(
            key, ask(context, task, f"{uid}/{keyword}", "", asked), sids, (), tuple(target), history, facts
        )


def rec_reason(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """Profile, watched captions and the next video's caption to the reasoning that leads there."""
    name, uid = "sft_rec_reason", row["uid"]
    texts = {key: row.get(key) for key in ("reco_gsu_caption", "reco_target_caption", "reco_cot")}
    profile = context.profile(row, name)
    if profile is None or not all(
        isinstance(t, str) and t.strip() for t in (texts["reco_target_caption"], texts["reco_cot"])
    ):
        return context.skip(name, "no reasoning")
    template = context.draw(prompts("understand")["reason_question"], name, uid)
    asked = template.format(
        profile=profile, history=texts["reco_gsu_caption"] or "", target=texts["reco_target_caption"]
    )
    facts = {"uid": uid, "target_pid": row.get("target_pid")}
    yield Sample((uid, row["split"]), [message("user", asked)], texts["reco_cot"], facts=facts)


def item_caption(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """An item's SID to its caption, as a conversation."""
    if (sid := context.video.text.get(row["pid"])) is None:
        return context.skip("sft_item_understand", "pid without SID skipped")
    asked = context.draw(prompts("understand")["item_question"], "item_understand", row["pid"]).format(
        sid=sid
    )
    yield Sample((row["pid"],), [message("user", asked)], row["caption"], facts={"pid": row["pid"]})


def item_text(row: dict[str, Any], context: Context) -> Iterator[Sample]:
    """An item's SID and caption as plain text."""
    if (sid := context.video.text.get(row["pid"])) is None:
        return context.skip("pretrain_item_understand", "pid without SID skipped")
    template = context.draw(prompts("understand")["item_text"], "item_text", row["pid"])
    text = template.format(sid=sid, caption=row["caption"])
    yield Sample((row["pid"],), texts=(text,), facts={"pid": row["pid"]})
