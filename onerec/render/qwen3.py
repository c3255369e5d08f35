"""Qwen3: a turn is ``<|im_start|>role\\ncontent<|im_end|>\\n``, thinking stands in ``<think>\\n…\\n</think>\\n\\n``.

An answer without thinking carries the empty block, and ``/think`` or ``/no_think`` at the end of the last user turn
says which is wanted (Qwen3 technical report, arXiv 2505.09388, section 4.3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onerec.render.base import Messages, Piece, Renderer, is_thinking, message_text, thought_and_answer

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class Qwen3(Renderer):
    """Renders as Qwen3's published chat template does."""

    model_type = "qwen3"
    model_class = "Qwen3ForCausalLM"
    marks = (IM_START, IM_END, END_OF_TEXT)
    turn_end, text_end = IM_END, END_OF_TEXT
    user_begin, answer_begin = f"{IM_START}user\n", f"{IM_START}assistant\n"
    switches: Mapping[bool, str] = {True: "/think", False: "/no_think"}
    template_without_thinking: Mapping[str, Any] = {"enable_thinking": False}

    def render(self, messages: Messages, add_think_pattern: bool = True) -> list[Piece]:
        """See `Renderer.render`.

        Thinking stays only in the turns after the last user turn, and the last answer always has a think block.
        """
        if add_think_pattern:
            messages = self.with_switch(messages, is_thinking(messages))
        last_user = max((i for i, item in enumerate(messages) if item["role"] == "user"), default=-1)
        pieces: list[Piece] = []
        for index, item in enumerate(messages):
            header = f"{IM_START}{item['role']}\n"
            if item["role"] == "tool":
                pieces.append(Piece(_tool_turn(messages, index), False))
            elif item["role"] == "assistant":
                thought, answer = thought_and_answer(item)
                answer = answer.lstrip("\n")
                calls = _tool_calls(item.get("tool_calls") or [], bool(answer))
                if index > last_user and (index == len(messages) - 1 or thought):
                    answer = self.think_block(thought.strip("\n")) + answer
                pieces += [Piece(header, False), Piece(answer + calls + IM_END, True), Piece("\n", False)]
            else:
                pieces.append(Piece(f"{header}{message_text(item['content'])}{IM_END}\n", False))
        return pieces


def chat_template() -> str:
    """A template with Qwen3's behaviour for text turns, for checkpoints made here; a real Qwen3 keeps its own."""
    return Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8").removesuffix("\n")


def _tool_calls(calls: Sequence[dict[str, Any]], after_text: bool) -> str:
    """An assistant's ``tool_calls``, each ``<tool_call>`` on lines of its own."""
    texts = []
    for call in calls:
        call = call.get("function") or call
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        texts.append(f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {arguments}}}\n</tool_call>')
    return ("\n" if after_text and texts else "") + "\n".join(texts)


def _tool_turn(messages: Messages, index: int) -> str:
    """A tool's answer: those that follow each other stand in one user turn."""
    first = index == 0 or messages[index - 1]["role"] != "tool"
    last = index == len(messages) - 1 or messages[index + 1]["role"] != "tool"
    begin, end = (f"{IM_START}user" if first else ""), (f"{IM_END}\n" if last else "")
    return f"{begin}\n<tool_response>\n{message_text(messages[index]['content'])}\n</tool_response>{end}"
