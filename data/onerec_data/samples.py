"""What a builder is given (a `Job`), what it gives (`Sample`), and what several builders share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data.onerec_data.batch import Batch, SidLists
from data.onerec_data.tables import Context
from data.onerec_data.text import Draws, Template, Turn, escaped
from data.onerec_data.wording import Prompts
from onerec.tasks import Task

VIDEO_HISTORY, MAX_TARGETS = 512, 10
HISTORY, TARGET = "hist_video_pid", "target_video_pid"
VIDEO_COLUMNS = (HISTORY, TARGET)
PROFILE_COLUMNS = ("inter_user_profile", "inter_user_profile_with_sid")
NO_SID, SKIPPED = "no item with a SID", "pid without SID skipped"
LATER_WINDOW = "a later window of its user, made once from window 0"
NO_PIDS = np.empty(0, np.int64)


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
    answer_pid: np.ndarray = dataclasses.field(default_factory=lambda: NO_PIDS)
    history_pid: np.ndarray = dataclasses.field(default_factory=lambda: NO_PIDS)


@dataclasses.dataclass(frozen=True)
class Job:
    """A task to build for some rows of a batch of users."""

    task: Task
    batch: Batch
    rows: Sequence[int]
    context: Context

    @property
    def prompts(self) -> Prompts:
        """What the tasks say."""
        return self.context.prompts

    @property
    def first_windows(self) -> list[int]:
        """Rows for tasks that are made once a user: later windows repeat parts of the first, and are counted."""
        for row in self.rows:
            self.skip(row, LATER_WINDOW, int(self.batch.windows[row] != 0))
        return [row for row in self.rows if not self.batch.windows[row]]

    def skip(self, row: int, reason: str, count: int = 1) -> None:
        """Count what a row has nothing for: legitimate, not bad."""
        self.batch.skip(row, self.task.name, reason, count)

    def bad(self, row: int, reason: str) -> None:
        """Count a malformed row."""
        self.batch.bad(row, self.task.name, reason)

    def draws(self, row: int, *more: object) -> Draws:
        """The draws of wording for a row."""
        return self.context.draws(self.task, *self.batch.keys[row], *more)

    def sample(
        self, row: int, key: tuple[object, ...] = (), facts: dict[str, Any] | None = None, **parts: Any
    ) -> Sample:
        """A sample of a row; ``key`` tells apart several of one row, ``facts`` go into the metadata beside the uid."""
        return Sample(row, (*self.batch.keys[row], *key), {"uid": self.batch.uid[row], **(facts or {})}, **parts)

    def recommend(
        self,
        row: int,
        prompt: Sequence[Turn],
        answer: SidLists,
        history: SidLists | None,
        at: int | None = None,
        **more: Any,
    ) -> Sample:
        """A sample whose answer are items: those of ``answer`` in ``row``, or at another place ``at``."""
        at = row if at is None else at
        pids = {"answer_pid": answer.pids(at), "history_pid": history.pids(row) if history else NO_PIDS}
        return self.sample(row, prompt=prompt, answer=answer.text[at], **pids, **more)

    def line(self, draws: Draws, kind: str, sids: bytes) -> bytes:
        """A history line: what the items are, then their SIDs."""
        return draws.pick(self.prompts["history"][kind]).fill() + sids

    def ask(
        self, draws: Draws, topic: str, body: bytes, options: Sequence[Template] = (), **fields: bytes
    ) -> list[Turn]:
        """The usual prompt: a system turn drawn for the topic; the body and a question, its own or of ``options``."""
        system = draws.pick(self.prompts["system"][topic]).fill()
        question = draws.pick(options or self.prompts["question"][topic]).fill(**fields)
        return [("system", system), ("user", body + rb"\n" + question if body else question)]

    @property
    def history(self) -> SidLists:
        """The watched videos of all rows, the latest."""
        return self.batch.sids(HISTORY, self.context.video, last=VIDEO_HISTORY)

    @property
    def targets(self) -> SidLists:
        """The next videos of all rows, the first."""
        return self.batch.sids(TARGET, self.context.video, first=MAX_TARGETS)

    def profiles(self) -> list[bytes | None]:
        """The profiles of all rows, escaped: the text with SIDs, or the one with pid marks, these turned into SIDs."""
        released, marked = (self.batch.texts(part) for part in reversed(PROFILE_COLUMNS))
        found: list[bytes | None] = []
        for row, (text, raw) in enumerate(zip(released, marked, strict=True)):
            if text is None and raw is not None:
                text, missing = self.context.fill_marks(raw)
                self.skip(row, SKIPPED, missing)
            found.append(None if text is None else escaped(text))
        return found


@dataclasses.dataclass(frozen=True)
class ItemJob:
    """A task to build for a batch of items."""

    task: Task
    pids: Sequence[int]
    captions: Sequence[str]
    context: Context


@dataclasses.dataclass(frozen=True)
class Builder:
    """A builder of a task, found under the name of the task's row.

    ``over``: ``users`` (it is given a `Job`) or ``items`` (an `ItemJob`). ``required`` parts must have a column in the
    users' table, and so must one of ``any_of``; ``optional`` parts are read where they exist. ``tags``: it needs the
    items' tags.
    """

    name: str
    build: Callable[[Any], Iterable[Sample]]
    over: str = "users"
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    tags: bool = False

    def lacking(self, parts: Collection[str]) -> list[str]:
        """What the task needs and ``parts`` do not hold."""
        missing = [part for part in self.required if part not in parts]
        if self.any_of and not any(part in parts for part in self.any_of):
            missing.append(" or ".join(self.any_of))
        return missing


def builder(**needs: Any) -> Callable[[Callable[[Any], Iterable[Sample]]], Builder]:
    """Make a function the `Builder` of the task that has the function's name."""
    return lambda build: Builder(build.__name__, build, **needs)


class Watched:
    """Watched videos and targets of a batch, for the tasks that need both."""

    def __init__(self, job: Job) -> None:
        self._job, self.history, self.target = job, job.history, job.targets
        self._lengths = [job.batch.lists(part).lengths.tolist() for part in VIDEO_COLUMNS]

    def usable(self, rows: Sequence[int]) -> Iterator[int]:
        """Rows whose history and targets both hold an item with a SID; what is left out is counted."""
        for row in rows:
            n_history, n_target = (lengths[row] for lengths in self._lengths)
            if not n_history or not n_target:
                self._job.skip(row, "no target" if n_history else "empty history")
                continue
            self._job.skip(row, SKIPPED, self.history.missing[row] + self.target.missing[row])
            if self.history.text[row] and self.target.text[row]:
                yield row
            else:
                self._job.skip(row, NO_SID)
