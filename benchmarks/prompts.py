"""Conversations as token ids that fit the model's context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onerec.errors import InputError
from onerec.prompts import shorten
from onerec.render import Renderer
from onerec.sid import SidSpec


class Prompts:
    """Encodes conversations in one batch; ``truncated`` counts those that were too long for the context."""

    def __init__(self, tokenizer: Any, context: int, spec: SidSpec | None, renderer: Renderer) -> None:
        self.tokenizer, self.context, self.spec, self.renderer = tokenizer, context, spec, renderer
        self.truncated = 0

    def encode(self, conversations: Sequence[Sequence[dict[str, str]]], thinking: bool, room: int) -> list[list[int]]:
        """Token ids of the prompts, each leaving ``room`` tokens of the context free.

        A prompt that is too long is shortened by `onerec.prompts`. Raises `InputError` where ``room`` leaves nothing.
        """
        limit = self.context - room
        if limit < 1:
            what = f"has a context of {self.context} tokens, and {room} are for its answer"
            raise InputError("the model", what, "fewer tokens of thinking or answer")
        texts = [self.renderer.prompt_text(messages, thinking) for messages in conversations]
        coded = self._ids(texts) if texts else []
        for i, ids in enumerate(coded):
            if len(ids) > limit:
                layers = self.spec.n_layers if self.spec else 0
                coded[i] = shorten(texts[i], ids, limit, lambda text: self._ids([text])[0], layers, self.renderer)
                self.truncated += 1
        return coded

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]
