"""Answers to requests: items by a model or by the baseline, texts by a model, and what a page asks beside."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks.backends.base import Sampling
from benchmarks.serving.engine import Engine, Refused
from benchmarks.serving.guard import Metrics
from benchmarks.serving.library import Library, Unknown
from benchmarks.serving.questions import FIELDS, Question, question
from benchmarks.serving.ranker import Ranked, Wanted
from benchmarks.serving.schemas import ChatRequest, PromptRequest, RecommendRequest, Subject
from benchmarks.serving.worker import Chat, Rank
from benchmarks.tasks import TASKS
from onerec.render import CHAT_MARK
from onerec.tasks import LABEL, RANK

DEFAULT_TOKENS = 512
Events = AsyncIterator[tuple[str, Any]]


@dataclasses.dataclass
class Service:
    """What the routes need. ``engines`` by the models' names, the first is the default; ``write`` writes text in the
    place of the first engine, where another server does.
    """

    engines: dict[str, Engine]
    library: Library | None
    metrics: Metrics
    write: Callable[[ChatRequest], Events] | None = None

    @property
    def first(self) -> Engine:
        return next(iter(self.engines.values()))

    @property
    def baseline(self) -> str:
        """The baseline's name; empty where there is none."""
        return self.library.baseline_name if self.library and self.library.trained else ""

    def models(self) -> list[str]:
        """Names that a request may give."""
        return [*self.engines, *filter(None, [self.baseline])]

    def info(self) -> dict[str, Any]:
        """What the page shows before anything is asked."""
        tasks = [name for name in self.library.tasks if TASKS[name].kind != LABEL] if self.library else []
        return {
            "models": list(self.engines),
            "ranks": [name for name, engine in self.engines.items() if engine.facts["ranks"]],
            "baseline": self.baseline,
            "context": self.first.facts["context"],
            "why_not": self.why_not(self.first),
            "language": self.library.data.words.language if self.library else "en",
            "exclude_seen": bool(self.library and self.library.leaves_out_history),
            "noun": self.library.data.words.noun if self.library else "",
            "tasks": [
                {
                    "name": name,
                    "kind": TASKS[name].kind,
                    **{key: self.library.options(name, field)[:200] for key, field in FIELDS.items()},
                }
                for name in tasks
            ],
        }

    def why_not(self, engine: Engine) -> str:
        """Why a model recommends nothing; empty where it does."""
        if not engine.facts["sids"]:
            return f"the model {engine.name} has no SIDs in its vocabulary: it writes text and recommends nothing"
        return "" if engine.facts["ranks"] else "the server has no benchmark data to recommend from; --data_dir"

    def shelf_library(self, task: str) -> Library:
        """The library, for a ranking or text task that is there."""
        if self.library is None:
            raise Refused(409, "the server has no benchmark data; --data_dir")
        if task not in self.library.tasks:
            raise Unknown(f"task {task[:80]!r} has no test file here; one of {', '.join(self.library.tasks)}")
        return self.library

    def asked(self, body: Subject, target: int | str | None = None) -> tuple[Library, Question]:
        """The question of a request."""
        library = self.shelf_library(body.task)
        choice = {key: getattr(body, key) for key in FIELDS}
        return library, question(library, body.task, body.user, body.history, choice, target)

    def prompt(self, body: PromptRequest) -> dict[str, Any]:
        """The messages of a question, for a chat."""
        library, asked = self.asked(body, body.target)
        shelf = library.shelf(body.task)
        history = [shelf.item(pid) for pid in asked.history]
        return {"messages": asked.messages, "history": history, "reference": asked.reference}

    def engine(self, name: str | None) -> Engine:
        """The engine of a name; raises `Unknown` where there is none."""
        if name is None or name in self.engines:
            return self.first if name is None else self.engines[name]
        raise Unknown(f"model {name[:80]!r} is not served; one of {', '.join(self.models())}")

    async def recommend(self, body: RecommendRequest) -> Events:
        """``thought`` while it is written, then ``done`` with the whole answer."""
        library, asked = self.asked(body)
        if TASKS[body.task].kind != RANK:
            raise Unknown(f"{body.task} asks for text, not for items; /v1/prompts and /v1/chat/completions")
        head = {"id": f"rec-{uuid.uuid4().hex[:12]}", "object": "recommendation", "created": int(time.time())}
        if body.model and body.model == self.baseline:
            yield "done", head | await self._by_baseline(library, asked, body)
            return
        engine = self.engine(body.model)
        if why := self.why_not(engine):
            raise Refused(409, why)
        skip = frozenset(asked.history) if body.exclude_seen else frozenset()
        wanted = Wanted(
            body.task, asked.messages, tuple(asked.history), body.k, body.num_beams, skip, body.prior_weight
        )
        thinking = min(body.max_thinking_tokens, _most_tokens(engine)) if body.thinking else 0
        job, thought = Rank(wanted, thinking, Sampling(body.temperature, body.top_p, body.seed)), ""
        async with contextlib.aclosing(engine.rank(job)) as said:
            async for kind, value in said:
                if kind == "thought":
                    thought += value
                    yield kind, value
                elif kind == "done":
                    self.metrics.tokens.labels("read").inc(value.prompt_tokens)
                    answer = self._answer(library, asked, body, [(p, lp, s) for p, lp, s in value.items])
                    yield (
                        kind,
                        head | answer | self._cut(engine, value) | {"model": engine.name, "thought": thought.strip()},
                    )

    def _cut(self, engine: Engine, found: Ranked) -> dict[str, Any]:
        left = {"left_out": found.left_out, "usage": {"prompt_tokens": found.prompt_tokens}}
        if found.left_out:
            context = engine.facts["context"]
            left["note"] = f"the {found.left_out} oldest items have no room in the context of {context} tokens"
        return left

    async def _by_baseline(self, library: Library, asked: Question, body: RecommendRequest) -> dict[str, Any]:
        skip = set(asked.history) if body.exclude_seen else set()

        def found() -> list[int]:
            recommender = library.baseline(body.task)
            if recommender is None:
                raise Refused(409, f"the data have no training users of {body.task}, from whom a baseline learns")
            return library.shelf(body.task).ranked(recommender, asked.history, body.k, skip)

        items = [(pid, None, None) for pid in await asyncio.to_thread(found)]
        return self._answer(library, asked, body, items) | {"model": self.baseline, "thought": "", "left_out": 0}

    def _answer(
        self, library: Library, asked: Question, body: RecommendRequest, items: list[tuple[int, float | None, Any]]
    ) -> dict[str, Any]:
        shelf, seen, taken = library.shelf(body.task), set(asked.history), set(asked.answer)
        rows = []
        for rank, (pid, logprob, score) in enumerate(items, 1):
            row = shelf.item(pid) | {"rank": rank, "seen": pid in seen}
            if logprob is not None:
                row |= {"logprob": round(logprob, 5), "probability": math.exp(logprob), "score": round(score, 5)}
            if taken:
                row["hit"] = pid in taken
            rows.append(row)
        answer = {"task": body.task, "items": rows, "history": [shelf.item(pid) for pid in asked.history]}
        return answer | ({"taken": [shelf.item(pid) for pid in dict.fromkeys(asked.answer)]} if taken else {})

    async def chat(self, body: ChatRequest) -> Events:
        """``thought`` and ``delta`` as they are written, then ``done`` with (finish reason, tokens read, written)."""
        if mark := next(filter(None, (CHAT_MARK.search(turn["content"]) for turn in body.turns)), None):
            raise Unknown(f"a message holds {mark[0]}, a mark between turns; leave it out")
        if body.turns[-1]["role"] == "assistant":
            raise Unknown("the last message is the assistant's; one of the user's")
        engine = self.engine(body.model)
        if self.write is not None and engine is self.first:
            said = self.write(body)
        else:
            said = engine.said(self._chat_job(body, engine))
        async with contextlib.aclosing(said) as events:
            async for kind, value in events:
                if kind == "done":
                    self.metrics.tokens.labels("read").inc(value[1])
                    self.metrics.tokens.labels("written").inc(value[2])
                yield kind, value

    def _chat_job(self, body: ChatRequest, engine: Engine) -> Chat:
        wanted = body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS
        most = _most_tokens(engine)
        thinking = min(body.max_thinking_tokens, most) if body.thinks else 0
        sampling = Sampling(body.temperature, body.top_p, body.seed)
        return Chat(body.turns, min(wanted, most), thinking, sampling, body.stops)


def _most_tokens(engine: Engine) -> int:
    """A quarter of the context for an answer, and as much for the thinking: the prompt keeps half."""
    return max(1, engine.facts["context"] // 4)
