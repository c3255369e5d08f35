"""The loop of a model's process: what waits for items is ranked together, texts take turns, a token each.

Over the connection come ``("rank", id, Rank)``, ``("text", id, Chat)``, ``("cancel", id)`` and ``("stop",)``; back go
``("ready", facts)`` and lists of ``(id, kind, value)`` with the kinds ``thought``, ``delta``, ``done`` and ``error``.
"""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.backends.base import Sampling
from benchmarks.model import GREEDY
from benchmarks.serving.ranker import Wanted
from onerec.errors import InputError, unforeseen

GATHER = 0.01  # seconds that a question for items waits for company
MOST_RANKED = 64  # questions of a batch
MOST_TEXTS = 16  # texts that take turns; others wait


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a process loads; the replica at ``place`` takes one of several GPUs."""

    model_path: Path
    data_dir: Path | None
    prior: Path | None = None
    product_prior: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    place: int = 0


@dataclasses.dataclass(frozen=True)
class Rank:
    """Items are wanted, after at most ``thinking`` tokens of thinking."""

    wanted: Wanted
    thinking: int = 0
    sampling: Sampling = GREEDY


@dataclasses.dataclass(frozen=True)
class Chat:
    """A text is wanted."""

    messages: list[dict[str, str]]
    tokens: int
    thinking: int = 0
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


@dataclasses.dataclass
class _Writing:
    """A text at work: the id of its request, and the question for items that is to follow."""

    id: int
    text: Any
    then: Wanted | None = None


class Worker:
    """A loaded model and its questions. ``send`` takes a list of messages for the other side."""

    def __init__(self, model: Any, ranker: Any, send: Callable[[list[tuple[int, str, Any]]], None]) -> None:
        self.model, self.ranker, self.send = model, ranker, send
        self.items: deque[tuple[int, Wanted]] = deque()
        self.texts: deque[tuple[int, Rank | Chat]] = deque()
        self.writing: deque[_Writing] = deque()
        self.last, self.since = 1, 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is to do."""
        return not (self.items or self.texts or self.writing)

    @property
    def patience(self) -> float | None:
        """Seconds that the next step may wait for more questions; None: until there is one.

        A batch is waited for while it has fewer questions than the one before, since whoever has just been answered
        may ask again; so that one client alone never waits. Texts at work are company enough.
        """
        if self.idle:
            return None
        if not self.items or self.writing or self.texts or len(self.items) >= self.last:
            return 0.0
        return max(0.0, self.since + GATHER - time.monotonic())

    def take(self, kind: str, id: int, *job: Any) -> None:
        """A message of the other side."""
        if kind == "cancel":
            self.items = deque(one for one in self.items if one[0] != id)
            self.texts = deque(one for one in self.texts if one[0] != id)
            self.writing = deque(one for one in self.writing if one.id != id)
        elif kind == "rank" and not job[0].thinking:
            self.since = self.since if self.items else time.monotonic()
            self.items.append((id, job[0].wanted))
        else:
            self.texts.append((id, job[0]))

    def step(self) -> None:
        """One batch of items, then a token of every text."""
        if self.items:
            batch = [self.items.popleft() for _ in range(min(len(self.items), MOST_RANKED))]
            self.last, self.since = len(batch), time.monotonic()
            self._rank(batch)
        while self.texts and len(self.writing) < MOST_TEXTS:
            self._begin(*self.texts.popleft())
        for _ in range(len(self.writing)):
            self._write(self.writing.popleft())

    def _rank(self, batch: list[tuple[int, Wanted]]) -> None:
        try:
            answers = self.ranker.rank([wanted for _, wanted in batch])
        except Exception as error:
            if len(batch) > 1:  # only whose question it is shall hear of it
                for one in batch:
                    self._rank([one])
                return
            self._fail(batch[0][0], error)
            return
        self.send([(id, "done", (found, len(batch))) for (id, _), found in zip(batch, answers, strict=True)])

    def _begin(self, id: int, job: Rank | Chat) -> None:
        from benchmarks.serving.writing import Ask, Text

        try:
            if isinstance(job, Rank):
                prompt = self.ranker.encode([job.wanted.messages], True, job.thinking)[0]
                ask, then = Ask(tuple(prompt), 1, job.thinking, job.sampling), job.wanted
            else:
                prompt = self.model.prompt_ids([job.messages], job.thinking > 0, job.tokens + job.thinking + 8)[0]
                ask, then = Ask(tuple(prompt), job.tokens, job.thinking, job.sampling, job.stop), None
            self.writing.append(_Writing(id, Text(self.model, ask), then))
        except Exception as error:
            self._fail(id, error)

    def _write(self, one: _Writing) -> None:
        try:
            thought, delta = one.text.step()
        except Exception as error:
            self._fail(one.id, error)
            return
        said = [(one.id, kind, text) for kind, text in (("thought", thought), ("delta", delta)) if text]
        if one.then is not None and one.text.ready:
            thought = {"thought": tuple(one.text.so_far), "prompt_tokens": len(one.text.ask.prompt)}
            self.take("rank", one.id, Rank(dataclasses.replace(one.then, **thought)))
        elif one.text.finish:
            tokens = (len(one.text.ask.prompt), len(one.text.ids))
            said.append((one.id, "done", (one.text.finish, *tokens)))
        else:
            self.writing.append(one)
        if said:
            self.send(said)

    def _fail(self, id: int, error: Exception) -> None:
        if not isinstance(error, InputError):
            error = unforeseen(error, "the model")
            print(f"error: {error}", flush=True)
            self.send([(id, "error", (500, "the model failed; the server's log names a file that says where"))])
        else:
            self.send([(id, "error", (400, str(error)))])


def opened(settings: Settings) -> tuple[Any, Any]:
    """(model, ranker) of the settings; the ranker is None for a model without SIDs, or without data.

    Raises `InputError` where model and data cannot be used together.
    """
    from benchmarks.baselines import load_training
    from benchmarks.catalogues import SEQUENCES, BenchData
    from benchmarks.model import BenchModel
    from benchmarks.prior import PriorFile
    from benchmarks.recommenders.base import Options
    from benchmarks.recommenders.transitions import DecayedTransitions
    from benchmarks.serving.ranker import Ranker
    from benchmarks.tasks import TASKS
    from onerec.tasks import PRODUCT, RANK_TASKS

    model = BenchModel(settings.model_path, device=_device(settings), precision=settings.precision)
    if settings.data_dir is None or model.spec is None:
        return model, None
    data = BenchData(settings.data_dir)
    for path in filter(None, (settings.prior, settings.product_prior)):  # what is wrong with it is said now
        if (key := data.prior(path).key) != "pid":
            what = f"has scores by {key}, and a question is a history of items"
            raise InputError(path, what, "scores by pid, as data/transitions.py writes them")

    @functools.cache
    def prior_of(task: str) -> PriorFile | None:
        path = settings.product_prior if TASKS[task].catalogue == PRODUCT else settings.prior
        if path is not None:
            return data.prior(path)
        if not (data.folder / SEQUENCES).is_file():
            return None
        try:
            training = load_training(data.folder, task)
        except InputError:
            return None
        return PriorFile.of_transitions(DecayedTransitions(training, Options()).transitions)

    ranker = Ranker(model, data, prior_of)
    task = next(name for name in RANK_TASKS if (data.folder / TASKS[name].test_file).is_file())
    ranker.rank([Wanted(task, [{"role": "user", "content": ""}], ())])  # what is made once is made before the first
    return model, ranker


def _device(settings: Settings) -> str:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{settings.place % gpus}" if gpus > 1 and settings.device in ("auto", "cuda") else settings.device


def run(connection: Any, settings: Settings) -> None:
    """The process: load, say what was loaded, work until told to stop or the other side is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the other side ends this one, when all is answered
        signal.signal(number, signal.SIG_IGN)
    try:
        model, ranker = opened(settings)
    except InputError as error:
        connection.send(("failed", (error.file, error.what, error.right)))
        return
    connection.send(("ready", {"context": model.context, "sids": model.spec is not None, "ranks": ranker is not None}))
    work(connection, model, ranker)


def work(connection: Any, model: Any, ranker: Any) -> None:
    """Answer what comes over the connection, until ``("stop",)`` or its end."""
    worker = Worker(model, ranker, connection.send)
    try:
        while True:
            # What has come, then what comes while there is patience.
            while connection.poll(worker.patience):
                message = connection.recv()
                if message[0] == "stop":
                    return
                worker.take(*message)
            worker.step()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
