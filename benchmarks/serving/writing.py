"""Text by a model, a token at a time, so that several texts and the item search can take turns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from benchmarks.backends.base import Sampling
from benchmarks.model import GREEDY, BenchModel

_MOST_PENDING = 8  # tokens of half a character that are waited for


@dataclasses.dataclass(frozen=True)
class Ask:
    """A text that is wanted: its prompt's token ids and at most ``tokens`` tokens of answer.

    ``thinking``: tokens that it may think first (0: not). ``stop``: texts before which the answer ends.
    """

    prompt: tuple[int, ...]
    tokens: int
    thinking: int = 0
    sampling: Sampling = GREEDY
    stop: tuple[str, ...] = ()


class Text:
    """A text that is being written. `step` writes one more token and gives what can be shown of it.

    ``ids`` are the tokens behind the prompt, ``finish`` is empty until the text has ended: ``stop`` or ``length``.
    """

    def __init__(self, model: BenchModel, ask: Ask) -> None:
        from transformers import DynamicCache

        self.model, self.ask, self.net = model, ask, model.backend.model
        self.think = model.renderer.think_ids(model.tokenizer)
        self._open = model.tokenizer.convert_tokens_to_ids(model.renderer.think_marks[0])
        self.ids: list[int] = []
        self.thinking, self.finish = ask.thinking > 0, ""
        self.thought_tokens, self.answer_tokens = 0, 0
        self._cache = DynamicCache(config=self.net.config)
        self._feed = list(ask.prompt)  # tokens that the model has not read yet
        self._forced: list[int] = []  # tokens that are not the model's choice: the marks around its thinking
        self._pending: list[int] = []  # tokens that are not shown yet
        self._held, self._shown = "", False
        self._random = np.random.Generator(np.random.Philox(key=ask.sampling.key(ask.prompt)))

    @property
    def ready(self) -> bool:
        """Whether it has thought, so that an answer, an item say, can follow `so_far`."""
        return not self.thinking and not self._forced

    @property
    def so_far(self) -> list[int]:
        """The token ids of prompt, thinking and answer."""
        return [*self.ask.prompt, *self.ids]

    def step(self) -> tuple[str, str]:
        """One token more: (new text of the thinking, new text of the answer)."""
        forced = bool(self._forced)
        token = self._forced.pop(0) if forced else self._next()
        if self.thinking and token in self.model.ends:  # the thinking was never closed
            think = self.think
            self._forced = [*think.before_close, think.close] if self.ids else list(think.empty)
            return "", ""
        self._feed.append(token)
        self.ids.append(token)
        if self.thinking:
            return self._thought(token), ""
        return "", "" if forced else self._answer(token)

    def _thought(self, token: int) -> str:
        self.thought_tokens += 1
        if token == self.think.close:
            self.thinking, self._forced, self._shown = False, list(self.think.after_close), False
            return self._decoded(True)
        if self.thought_tokens >= self.ask.thinking and not self._forced:
            self._forced = [*self.think.before_close, self.think.close]
        if token == self._open:
            return ""
        self._pending.append(token)
        return self._decoded()

    def _answer(self, token: int) -> str:
        self.answer_tokens += 1
        if token in self.model.ends:
            self.finish = "stop"
        else:
            self._pending.append(token)
            if self.answer_tokens >= self.ask.tokens:
                self.finish = "length"
        return self._until_stop(self._decoded(bool(self.finish)))

    def _until_stop(self, text: str) -> str:
        """``text`` without what may be the beginning of a stop text, which is held back until the next."""
        if not self.ask.stop:
            return text
        text = self._held + text
        found = [at for stop in self.ask.stop if (at := text.find(stop)) >= 0]
        if found:
            self.finish, self._held = "stop", ""
            return text[: min(found)]
        keep = 0
        if not self.finish:
            keep = max((n for stop in self.ask.stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decoded(self, all_of_it: bool = False) -> str:
        """The text of the pending tokens; nothing while they end in half a character."""
        text = self.model.tokenizer.decode(self._pending, skip_special_tokens=True)
        if text.endswith("�") and not all_of_it and len(self._pending) < _MOST_PENDING:
            return ""
        self._pending = []
        text = text if self._shown else text.lstrip("\n")
        self._shown = self._shown or bool(text)
        return text

    def _next(self) -> int:
        """The token that the model says is next."""
        import torch

        ids = torch.tensor([self._feed], device=self.net.device)
        with torch.inference_mode():
            out = self.net(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._feed = []
        return chosen(out.logits[0, -1], self.ask.sampling, self._random)


def chosen(logits: Any, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token by ``logits`` [vocabulary]: the likeliest at temperature 0, else a draw, as `Sampling` says."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    # From the largest on, so that a temperature near 0 divides nothing but zeros into what is no number.
    chance = ((logits - logits.max()).double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        chance, order = chance.sort(descending=True)
        chance = chance.where(chance.cumsum(-1) - chance < sampling.top_p, 0)
    total = chance.cumsum(-1)
    place = min(int((total < random.random() * float(total[-1])).sum()), len(total) - 1)
    return int(order[place]) if sampling.top_p < 1 else place
