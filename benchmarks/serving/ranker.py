"""Items for many histories at once: prompts, the item search and, on request, an item prior."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.catalogues import BenchData, resolve
from benchmarks.model import BenchModel
from benchmarks.prior import PriorFile, TaskPrior
from benchmarks.tasks import TASKS, Example
from onerec.errors import InputError
from onerec.items.item import Item, Prior, ranked_with_prior

TOKEN_BUDGET = 16384  # tokens of a batch of the search, its beams counted


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One question for items.

    ``history`` are pids, oldest first; ``skip`` those that are never recommended. ``weight`` is of the item prior, 0
    without. ``thought`` are the token ids of prompt and thinking, where the model has thought before; the first
    ``prompt_tokens`` of them are the prompt's.
    """

    task: str
    messages: list[dict[str, str]]
    history: tuple[int, ...]
    k: int = 10
    beams: int = 32
    skip: frozenset[int] = frozenset()
    weight: float = 0.0
    thought: tuple[int, ...] = ()
    prompt_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Ranked:
    """The answer: (pid, log-probability of its SID, that with the prior) of every item, best first.

    ``left_out`` counts the oldest SIDs of the prompt that the context has no room for.
    """

    items: list[tuple[int, float, float]]
    prompt_tokens: int
    left_out: int


class Ranker:
    """A model over the catalogues of benchmark data. Raises `InputError` where the two have other SIDs."""

    def __init__(
        self, model: BenchModel, data: BenchData, prior_of: Callable[[str], PriorFile | None] = lambda task: None
    ) -> None:
        """``prior_of``: the item prior of a task by its name, None where it has none."""
        self.model, self.data, self.prior_of = model, data, prior_of
        self.spec = model.check_spec(data.spec, data.folder)
        self._engine: Any = None
        self._priors: dict[str, TaskPrior | None] = {}

    @property
    def engine(self) -> Any:
        """The item engine, which shares the model's weights and is made once."""
        if self._engine is None:
            from onerec.items.model import ItemModel

            self._engine = ItemModel.of(self.model.backend.model, self.spec)
        return self._engine

    def encode(
        self, messages: Sequence[list[dict[str, str]]], thinking: bool = False, room: int = 0
    ) -> list[list[int]]:
        """Token ids of prompts that leave room for an item, ``room`` more tokens and the marks of ``thinking``."""
        marks = self.model.renderer.think_ids(self.model.tokenizer).most if thinking else 0
        return self.model.prompt_ids(messages, thinking, self.spec.n_layers + 1 + room + marks)

    def left_out(self, messages: Sequence[dict[str, str]], ids: Sequence[int]) -> int:
        """SIDs of the messages that are not among the token ids of their prompt."""
        asked = sum(len(self.data.spec.parse(turn["content"])) for turn in messages)
        return max(0, asked - list(ids).count(self.spec.begin_id))

    def rank(self, asked: Sequence[Wanted]) -> list[Ranked]:
        """The answers, in order. Questions of one catalogue and beam width share their batches."""
        groups: dict[tuple[str, int], list[int]] = {}
        for place, wanted in enumerate(asked):
            width = max(wanted.beams, wanted.k)
            groups.setdefault((TASKS[wanted.task].catalogue, width), []).append(place)
        answers: dict[int, Ranked] = {}
        for (_, width), places in groups.items():
            answers |= zip(places, self._rank([asked[place] for place in places], width), strict=True)
        return [answers[place] for place in range(len(asked))]

    def _rank(self, asked: Sequence[Wanted], width: int) -> list[Ranked]:
        from onerec.items.search import find_items

        index = self.data.index(TASKS[asked[0].task])
        fresh = iter(self.encode([wanted.messages for wanted in asked if not wanted.thought]))
        prompts = [list(wanted.thought) or next(fresh) for wanted in asked]
        priors = [self._prior(wanted) for wanted in asked]
        also = [np.empty(0, np.int64) if prior is None else prior.best(width) for prior in priors]
        banned = [index.sids_within(wanted.skip) if wanted.skip else [] for wanted in asked]
        found = find_items(
            self.engine,
            [[*ids, self.spec.begin_id] for ids in prompts],
            index,
            width,
            TOKEN_BUDGET,
            banned if any(banned) else None,
            self.model.normalize,
            also=also if any(map(len, also)) else None,
        )
        answers = []
        for wanted, ids, prior, items in zip(asked, prompts, priors, found, strict=True):
            chosen = self._with_prior(items, prior, wanted, width) if prior else items[:width]
            own = {item.codes: item.score for item in items}
            of_pid = {pid: item for item in reversed(chosen) for pid in index.pids_of(item.codes)}
            pids = resolve(index, [item.codes for item in chosen], "all", skip=wanted.skip)[: wanted.k]
            rows = [(pid, own[of_pid[pid].codes], of_pid[pid].score) for pid in pids]
            asked_with = ids[: wanted.prompt_tokens or len(ids)]  # an item that is thought of is none of the history's
            answers.append(Ranked(rows, len(asked_with), self.left_out(wanted.messages, asked_with)))
        return answers

    def _prior(self, wanted: Wanted) -> Prior | None:
        if not wanted.weight:
            return None
        if wanted.task not in self._priors:
            file = self.prior_of(wanted.task)
            self._priors[wanted.task] = None if file is None else TaskPrior(file, self.data.index(TASKS[wanted.task]))
        prior = self._priors[wanted.task]
        if prior is None:
            what = f"{wanted.task} has no item prior"
            raise InputError("prior_weight", what, "--prior, or data with training sequences of the task")
        asked = Example("", None, [], "", [], list(wanted.history))
        return prior(asked, wanted.history, wanted.skip)

    def _with_prior(self, items: Sequence[Item], prior: Prior, wanted: Wanted, width: int) -> list[Item]:
        index = self.data.index(TASKS[wanted.task])
        codes = np.array([item.codes for item in items], np.int64).reshape(-1, self.spec.n_layers)
        return ranked_with_prior(items, prior.of(index.rows_of(codes)), wanted.weight, width)
