"""What the renderer of every family can do, and how records write thinking."""

from __future__ import annotations

import abc
import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onerec.run import read_json

# In records an assistant's thinking stands between these, on lines of its own, before the answer.
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

Messages = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of text of a rendered conversation; ``learn`` says whether its tokens carry loss."""

    text: str
    learn: bool


@dataclasses.dataclass(frozen=True)
class ThinkIds:
    """Token ids around thinking: its closing mark, the texts before and after that mark, and the whole empty block."""

    close: int
    before_close: list[int]
    after_close: list[int]
    empty: list[int]

    @property
    def most(self) -> int:
        """Tokens that stand around thinking, or in its place, at most: what a prompt is to leave room for beside it."""
        return max(len(self.before_close) + 1 + len(self.after_close), len(self.empty))


def message_text(content: str | list[dict[str, Any]]) -> str:
    """The text of a message's content, given as a string or as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def with_thinking(thought: str, answer: str) -> str:
    """An assistant's text in a record: ``thought`` in a think block, then ``answer``."""
    return f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n\n{answer}"


def split_thinking(text: str, marks: tuple[str, str] = (THINK_OPEN, THINK_CLOSE)) -> tuple[str, str]:
    """(thinking, answer) of an assistant's text; thinking is empty where no closing mark stands."""
    begin, end = marks
    if end not in text:
        return "", text
    thought, _, answer = text.rpartition(end)
    return thought.split(begin)[-1].strip("\n"), answer.lstrip("\n")


def thought_and_answer(message: Mapping[str, Any]) -> tuple[str, str]:
    """(thinking, answer) of an assistant's message; ``reasoning_content`` goes before a think block."""
    thought, answer = split_thinking(message_text(message["content"]))
    return message.get("reasoning_content") or thought, answer


def is_thinking(messages: Messages) -> bool:
    """Whether the last assistant turn holds thinking that is not empty."""
    answers = [item for item in messages if item["role"] == "assistant"]
    return bool(answers and thought_and_answer(answers[-1])[0])


class Renderer(abc.ABC):
    """How a family writes conversations: these facts and `render`. Marks are single tokens of its tokenizer."""

    model_type: str  # in config.json
    model_class: str  # its causal language model in transformers
    marks: tuple[str, ...]  # of turns and texts; no text of a record may hold one
    turn_end: str  # the mark that ends an answer
    text_end: str  # the mark that ends a plain text
    user_begin: str  # what opens a user's turn
    answer_begin: str  # what opens an assistant's turn
    think_marks: tuple[str, str] = (THINK_OPEN, THINK_CLOSE)
    switches: Mapping[bool, str] = {}  # what asks for thinking, or for none, at the end of the last user turn
    template_without_thinking: Mapping[str, Any] = {}  # arguments by which its chat template adds the empty block

    @abc.abstractmethod
    def render(self, messages: Messages, add_think_pattern: bool = True) -> list[Piece]:
        """A whole conversation for training: every assistant turn with its end learnt, prompts and headers not.

        With ``add_think_pattern`` the last user turn gets the switch that fits the answer. The pieces together are what
        the family's chat template gives.
        """

    def text(self, messages: Messages, add_think_pattern: bool = True) -> str:
        return "".join(piece.text for piece in self.render(messages, add_think_pattern))

    def think_block(self, thought: str = "") -> str:
        """Thinking as it stands before an answer."""
        begin, end = self.think_marks
        return f"{begin}\n{thought}\n{end}\n\n"

    def think_ids(self, tokenizer: Any) -> ThinkIds:
        """The ids of `think_block`'s parts."""
        before, after, empty = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("\n", "\n\n", self.think_block())
        )
        return ThinkIds(tokenizer.convert_tokens_to_ids(self.think_marks[1]), before, after, empty)

    def split_thinking(self, text: str) -> tuple[str, str]:
        """(thinking, answer) of what a model wrote."""
        return split_thinking(text, self.think_marks)

    def as_record(self, text: str) -> str:
        """What a model wrote, as a record has it: nothing behind the end, the records' think marks."""
        text = text.split(self.turn_end)[0].split(self.text_end)[0]
        begin, end = self.think_marks
        return text.replace(begin, THINK_OPEN).replace(end, THINK_CLOSE)

    def end_ids(self, folder: Path, tokenizer: Any) -> list[int]:
        """The ids at which an answer of the checkpoint in ``folder`` ends, sorted.

        They are the end of a turn, the tokenizer's own end, and the ``eos_token_id`` (one or several) of
        generation_config.json or, without that, of config.json: where Hugging Face and vLLM stop by themselves. A base
        model ends its text, a chat model its turn, and one trained from the other may do either.
        """
        files = [folder / name for name in ("generation_config.json", "config.json")]
        configured = next((read_json(file).get("eos_token_id") for file in files if file.exists()), None)
        own = [tokenizer.convert_tokens_to_ids(self.turn_end), tokenizer.eos_token_id]
        ids = own + (configured if isinstance(configured, list) else [configured])
        return sorted({i for i in ids if i is not None})

    def with_switch(self, messages: Messages, thinking: bool) -> list[dict[str, Any]]:
        """A copy of ``messages`` whose last user turn ends in the family's switch, unless it ends in one already."""
        copy = [dict(item, content=message_text(item["content"])) for item in messages]
        last = next((item for item in reversed(copy) if item["role"] == "user"), None)
        if last and not last["content"].rstrip().endswith(tuple(self.switches.values())):
            last["content"] += self.switches.get(thinking, "")
        return copy

    def prompt_text(self, messages: Messages, thinking: bool | None = False, add_think_pattern: bool = True) -> str:
        """The text that a model continues with its answer: ``messages`` without the answer, then the answer's header.

        ``thinking`` False adds the empty think block (the model answers at once); True leaves it to think;
        None adds neither switch nor block.
        """
        if add_think_pattern and thinking is not None:
            messages = self.with_switch(messages, thinking)
        turns = self.text(messages, add_think_pattern=False)
        return turns + self.answer_begin + (self.think_block() if thinking is False else "")

    def encode(
        self, messages: Messages, tokenizer: Any, add_think_pattern: bool = True, only_assistant_loss: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and whether each carries loss, with a fast Hugging Face tokenizer.

        The text is tokenized whole (so that ids equal those of the chat template) and a token carries loss when it
        begins inside a learnt piece.
        """
        pieces = self.render(messages, add_think_pattern)
        text = "".join(piece.text for piece in pieces)
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = coded["input_ids"], coded["offset_mapping"]
        if not only_assistant_loss:
            return ids, [True] * len(ids)
        if starts and not isinstance(starts[0], int):  # pairs (first, end), as Hugging Face gives them
            starts = [first for first, _ in starts]
        mask, position = [False] * len(ids), 0
        for piece in pieces:
            begin, position = position, position + len(piece.text)
            if piece.learn:
                first, last = bisect.bisect_left(starts, begin), bisect.bisect_left(starts, position)
                mask[first:last] = [True] * (last - first)
        return ids, mask
