"""A rollout's tokens: what was forced and what the model wrote, put together. Pure functions on lists of ids.

Tokens that were forced (a closed think block, the SID's begin and end) carry no loss: their response mask is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onerec.prompts import shorten
from onerec.render import Messages, Renderer, renderer_of
from onerec.sid import SidSpec


@dataclasses.dataclass(frozen=True)
class Marks:
    """The ids that are forced or looked for, of one checkpoint; ``ends`` are those that end an answer."""

    close: int
    ends: tuple[int, ...]
    begin: int
    end: int
    after_thinking: list[int]
    empty_thinking: list[int]

    @staticmethod
    def of(folder: Path, tokenizer: Any, spec: SidSpec) -> Marks:
        """Those of the checkpoint in ``folder``, whose tokenizer holds ``spec``'s tokens."""
        renderer = renderer_of(folder)
        think, ends = renderer.think_ids(tokenizer), tuple(renderer.end_ids(folder, tokenizer))
        return Marks(think.close, ends, spec.begin_id, spec.end_id, think.after_close, think.empty)


@dataclasses.dataclass
class Response:
    """Token ids of a response with, for each, the response mask (1: the model's own) and its log-probability."""

    ids: list[int] = dataclasses.field(default_factory=list)
    mask: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)

    def forced(self, ids: Sequence[int]) -> Response:
        """This with forced tokens behind it."""
        return Response([*self.ids, *ids], [*self.mask, *[0] * len(ids)], [*self.logprobs, *[0.0] * len(ids)])

    def written(self, ids: Sequence[int], logprobs: Sequence[float]) -> Response:
        """This with the model's own tokens behind it."""
        return Response([*self.ids, *ids], [*self.mask, *[1] * len(ids)], [*self.logprobs, *logprobs])


@dataclasses.dataclass(frozen=True)
class Thought:
    """A response up to where the items begin, how the thinking ended, and whether an item can follow.

    ``ended``: ``closed`` by the model, ``cut`` at the limit of tokens, ``stopped`` where it ended the answer inside its
    thinking, ``empty`` where none was asked for, ``no_item`` where the model was to open a SID and did not.
    """

    response: Response
    ended: str

    @property
    def well_formed(self) -> bool:
        """Whether the form is the model's own doing."""
        return self.ended in ("closed", "empty")

    @property
    def opens_item(self) -> bool:
        """Whether a SID has begun."""
        return self.ended != "no_item"


def without_thinking(marks: Marks) -> Thought:
    """The forced empty think block and the forced begin of a SID."""
    return Thought(Response().forced([*marks.empty_thinking, marks.begin]), "empty")


def after_thinking(ids: Sequence[int], logprobs: Sequence[float], marks: Marks, force_prefix: bool) -> Thought:
    """Close a sampled thinking and begin the SID.

    ``ids`` is what the model wrote up to and with ``</think>`` (or, without ``force_prefix``, up to and with the SID's
    begin token). What it did not write itself is forced.
    """
    ids, logprobs = list(ids), list(logprobs)
    stopped = bool(ids) and ids[-1] in marks.ends
    if stopped:
        ids, logprobs = ids[:-1], logprobs[:-1]
    response, last = Response().written(ids, logprobs), ids[-1] if ids else None
    if not force_prefix:
        if last != marks.begin:
            return Thought(response, "no_item")
        return Thought(response, "closed" if marks.close in ids else "stopped")
    if last == marks.close:
        return Thought(response.forced([*marks.after_thinking, marks.begin]), "closed")
    ended = "stopped" if stopped else "cut"
    return Thought(response.forced([marks.close, *marks.after_thinking, marks.begin]), ended)


def with_item(thought: Thought, token_ids: Sequence[int], logprobs: Sequence[float], marks: Marks) -> Response:
    """A thought with one item, its end token forced."""
    return thought.response.written(token_ids, logprobs).forced([marks.end])


def encode_prompt(
    messages: Messages, thinking: bool | None, tokenizer: Any, spec: SidSpec, limit: int, renderer: Renderer
) -> tuple[list[int], bool]:
    """(ids of at most ``limit``, whether the prompt was cut) of a prompt that ends in the assistant's header.

    A longer one is shortened as in the benchmark (`onerec.prompts`). Without thinking the empty think block is left to
    the response, whose forced tokens carry no loss either. ``thinking`` None puts no switch into the prompt.
    """
    text = renderer.prompt_text(messages, thinking).removesuffix(renderer.think_block())
    ids = _ids_of(text, tokenizer)
    if len(ids) <= limit:
        return ids, False
    return shorten(text, ids, limit, lambda part: _ids_of(part, tokenizer), spec.n_layers, renderer), True


def _ids_of(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
