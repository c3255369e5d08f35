"""What a model is asked: a test row as it is, or its wording around a history that somebody composes.

The wording of a task is not handed over by itself: it is that of a test row. What belongs to the row's user (other
lists of items, sentences of a profile) is left out of a composed question.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

from benchmarks.evaluators.rank import history_of
from benchmarks.serving.library import Library, Unknown
from benchmarks.tasks import TASKS
from onerec.render import CHAT_MARK
from onerec.sid import SidSpec
from onerec.tasks import RANK, REASON, UNDERSTAND

# Fields of a request, and the metadata of a test row that they choose by.
FIELDS = {"label": "target_interaction", "keyword": "keyword"}
TARGET = "target_pid"
_BETWEEN = re.compile(r"[,，、;；]? ?")
_SENTENCE_END = re.compile(r"[。！？\n]|[.!?] ")
Messages = list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt's messages, the history's pids (oldest first), the pids that were taken, the reference of a text."""

    messages: Messages
    history: list[int]
    answer: list[int]
    reference: str = ""


def question(
    library: Library,
    task: str,
    user: str | None = None,
    history: Sequence[int | str] | None = None,
    choice: dict[str, str | None] | None = None,
    target: int | str | None = None,
) -> Question:
    """The question of a task about a test ``user`` or a ``history``; ``choice`` are `FIELDS`, ``target`` the item that
    a text is about. Raises `Unknown` for what is not there.
    """
    if task not in library.tasks:
        raise Unknown(f"task {task!r} has no test file here; one of {', '.join(library.tasks)}")
    if (user is None) == (history is None):
        raise Unknown("user and history are both given or both missing; one of the two")
    if history is not None and not history:
        raise Unknown("the history is empty; at least one item")
    shelf, kind = library.shelf(task), TASKS[task].kind
    place, word = _row(library, task, user, {key: value for key, value in (choice or {}).items() if value is not None})
    example = library.examples[task][place]
    own = [] if kind == UNDERSTAND else history_of(example, shelf.index, library.data.spec)
    before = own if history is None else [shelf.find(name) for name in history]
    about = None if target is None else shelf.find(target)
    messages = example.messages
    if kind == UNDERSTAND:
        if about is None and not before:
            raise Unknown("target is missing: the item that the text is about")
        messages = wording(library, task, place).filled([shelf.sid(before[-1] if about is None else about)])
    elif kind == REASON:
        messages = _reason(library, task, place, None if history is None else before, about)
    elif history is not None:
        messages = wording(library, task, place).filled([shelf.sid(pid) for pid in before])
    if word is not None:
        messages = _with_word(library.data.spec, messages, *word)
    same = messages is example.messages
    return Question(
        messages, before, example.answer_ids if same and kind == RANK else [], example.answer if same else ""
    )


def _row(library: Library, task: str, user: str | None, given: dict[str, str]) -> tuple[int, tuple[str, str] | None]:
    """The place of the test row that is asked, or lends its wording; and (its keyword, that of the request), where it
    has another.
    """
    anybody = user is None or TASKS[task].kind == UNDERSTAND
    places = range(len(library.examples[task])) if anybody else library.places(task, user)
    for key, value in given.items():
        rows = library.fields(task, FIELDS[key])
        if not rows:
            raise Unknown(f"{task} has no {key}; leave it out")
        if (place := next((place for place in places if place in rows.get(value, ())), None)) is not None:
            return place, None
        if key == "label":
            names = [name for name, of in rows.items() if not of.isdisjoint(places)]
            raise Unknown(f"label {value!r} is in no such test row; one of {', '.join(names)}")
        return places[0], (next((name for name, of in rows.items() if places[0] in of), ""), value)
    return places[0], None


@dataclasses.dataclass(frozen=True)
class Wording:
    """A row's turns: role, text before its items, what stands between two, text behind (None where it has none)."""

    turns: tuple[tuple[str, str, str, str | None], ...]

    def filled(self, sids: Sequence[str]) -> Messages:
        """The messages with these items."""
        return [
            {"role": role, "content": before if after is None else before + between.join(sids) + after}
            for role, before, between, after in self.turns
        ]


@functools.lru_cache(4096)
def wording(library: Library, task: str, place: int) -> Wording:
    """What a test row says around its items, and nothing else of its user."""
    rows, shelf = library.examples[task], library.shelf(task)
    example = rows[place]
    own, turns = [shelf.sid(pid) for pid in example.history], []
    for number, turn in enumerate(example.messages):
        # Wordings come again, so that a few hundred rows tell them from what is somebody's own.
        others = (
            e.messages[number]["content"] for e in rows[:500] if e.user != example.user and number < len(e.messages)
        )
        turns.append((turn["role"], *around_items(turn["content"], library.data.spec, own, list(others))))
    return Wording(tuple(turns))


def around_items(
    text: str, spec: SidSpec, own: Sequence[str] = (), others: Sequence[str] = ()
) -> tuple[str, str, str | None]:
    """(text before the items, what stands between two of them, text behind), or (text, "", None) without items.

    Of several runs of SIDs that which is ``own`` is the items, or the first; the others go with their sentences. So
    does what stands before the first run where no text of ``others`` begins alike: it is about somebody else.
    """
    found = list(spec.pattern.finditer(text))
    if not found:
        return text, "", None
    runs = [[found[0]]]
    for last, match in itertools.pairwise(found):
        if _BETWEEN.fullmatch(text[last.end() : match.start()]):
            runs[-1].append(match)
        else:
            runs.append([match])
    kept = next((run for run in runs if [match[0] for match in run] == list(own)), runs[0])
    lead = text[: _sentence(text, found[0].start())]
    lead = lead if any(other.startswith(lead) for other in others) else ""
    label = text[_sentence(text, kept[0].start()) : kept[0].start()]
    between = text[kept[0].end() : kept[1].start()] if len(kept) > 1 else ""
    return lead + label, between, text[found[-1].end() :]


def _sentence(text: str, place: int) -> int:
    """Where the sentence of a place begins."""
    return max((match.end() for match in _SENTENCE_END.finditer(text, 0, place)), default=0)


def _with_word(spec: SidSpec, messages: Messages, old: str, new: str) -> Messages:
    """The messages with another keyword behind the last SID of the last turn."""
    if mark := CHAT_MARK.search(new):
        raise Unknown(f"the keyword holds {mark[0]}, a mark between turns; leave it out")
    *turns, last = messages
    text = last["content"]
    end = max((match.end() for match in spec.pattern.finditer(text)), default=0)
    if not old or old not in text[end:]:
        raise Unknown("the wording of this task does not name its keyword; leave it out")
    word = re.escape(old)
    whole = rf"(?<!\w){word}(?!\w)"  # a short one is part of other words too
    behind = re.sub(whole if re.search(whole, text[end:]) else word, lambda _: new, text[end:])
    return [*turns, last | {"content": text[:end] + behind}]


def _reason(library: Library, task: str, place: int, history: Sequence[int] | None, target: int | None) -> Messages:
    """A row's messages about another item and another history, where there is one: captions for captions."""
    example, titles = library.examples[task][place], library.shelf(task).titles
    if history is None and target is None:
        return example.messages
    pid = next((int(pid) for pid, places in library.fields(task, TARGET).items() if place in places), -1)
    old, new = titles.get(pid, ""), titles.get(pid if target is None else target, "")
    messages = example.messages
    if history is not None:
        messages = wording(library, task, place).filled([library.shelf(task).sid(pid) for pid in history[-3:]])
    *turns, last = messages
    text = last["content"]
    if not old or not new or old not in text:
        raise Unknown("there are no captions, by which this question is put to other items; --titles")
    at = text.rindex(old)
    before, after = text[:at], text[at + len(old) :]
    if history is not None:
        lines, captions = before.split("\n"), set(titles.values())
        spots = [i for i, line in enumerate(lines) if line.strip() and line.strip() in captions]
        if spots:
            lines[spots[0] : spots[-1] + 1] = [titles[pid] for pid in history if titles.get(pid)][-len(spots) :]
        before = "\n".join(lines)
    return [*turns, last | {"content": before + new + after}]
