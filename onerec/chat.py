"""Chat rendering in Qwen3's format, the think switch, and the loss mask: one function for training, evaluation and RL.

A turn is ``<|im_start|>role\\ncontent<|im_end|>\\n``. Thinking stands in ``<think>\\n…\\n</think>\\n\\n`` before the
answer; an answer without thinking carries the empty block. ``/think`` or ``/no_think`` at the end of the last user
turn says which is wanted (Qwen3 technical report, arXiv 2505.09388, section 4.3).
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onerec.records import END_OF_TEXT, IM_END, IM_START, message_text
from onerec.run import read_json

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
EMPTY_THINK = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"
SWITCH = {True: "/think", False: "/no_think"}

# A chat template with Qwen3's behaviour for text turns, for checkpoints that this project makes itself; a real Qwen3
# keeps its own. Same rendering as `render` below (tests/onerec/test_chat.py holds the two together).
CHAT_TEMPLATE = """\
{%- set ns = namespace(last_user=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set text = m.content if m.content is string else m.content | map(attribute='text') | join('') -%}
{%- if m.role == 'tool' -%}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\\n<tool_response>\\n' + text + '\\n</tool_response>' -}}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + m.role + '\\n' -}}
{%- if m.role == 'assistant' -%}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' -%}
{%- if not thought and '</think>' in text -%}
{%- set thought = text.split('</think>')[0].split('<think>')[-1] -%}
{%- set text = text.split('</think>')[-1] -%}
{%- endif -%}
{%- set text = text.lstrip('\\n') -%}
{%- if loop.index0 > ns.last_user and (loop.last or thought) -%}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
{{- text -}}
{%- for call in m.tool_calls or [] -%}
{%- set call = call.function or call -%}
{%- if text or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}"""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A run of text of a rendered conversation; ``learn`` says whether its tokens carry loss."""

    text: str
    learn: bool


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and, of the same length, whether each token carries loss."""

    input_ids: list[int]
    loss_mask: list[bool]


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer) of an assistant's text; thinking is empty where there is no ``</think>``."""
    if THINK_CLOSE not in text:
        return "", text
    thought, _, answer = text.rpartition(THINK_CLOSE)
    return thought.split(THINK_OPEN)[-1].strip("\n"), answer.lstrip("\n")


def until_end(text: str) -> str:
    """``text`` up to the first mark that ends an answer, without it."""
    return re.split(f"{re.escape(IM_END)}|{re.escape(END_OF_TEXT)}", text, maxsplit=1)[0]


def end_ids(folder: Path, tokenizer: Any) -> list[int]:
    """The ids at which an answer of the checkpoint in ``folder`` ends, sorted.

    They are ``<|im_end|>``, the tokenizer's own end, and the ``eos_token_id`` (one or several) of the checkpoint's
    generation_config.json or, without that, of its config.json: where Hugging Face and vLLM stop by themselves. A base model
    ends its text by ``<|endoftext|>``, a chat model its turn by ``<|im_end|>``, and one trained from the other may do either.
    """
    files = [folder / name for name in ("generation_config.json", "config.json")]
    configured = next((read_json(file).get("eos_token_id") for file in files if file.exists()), None)
    own = [tokenizer.convert_tokens_to_ids(IM_END), tokenizer.eos_token_id]
    ids = own + (configured if isinstance(configured, list) else [configured])
    return sorted({i for i in ids if i is not None})


def with_switch(messages: Sequence[dict[str, Any]], thinking: bool) -> list[dict[str, Any]]:
    """A copy of ``messages`` whose last user turn ends in ``/think`` or ``/no_think``."""
    copy = [dict(item, content=message_text(item["content"])) for item in messages]
    for item in reversed(copy):
        if item["role"] == "user":
            if not re.search(r"/(no_)?think\s*$", item["content"]):
                item["content"] += SWITCH[thinking]
            break
    return copy


def is_thinking(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the last assistant turn holds thinking that is not empty."""
    for item in reversed(messages):
        if item["role"] == "assistant":
            return bool(item.get("reasoning_content") or split_thinking(message_text(item["content"]))[0])
    return False


def tool_calls_text(calls: Sequence[dict[str, Any]], after_text: bool) -> str:
    """An assistant's ``tool_calls`` as Qwen3 writes them, each ``<tool_call>`` on lines of its own."""
    texts = []
    for call in calls:
        call = call.get("function") or call
        arguments = call["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        texts.append(f'<tool_call>\n{{"name": "{call["name"]}", "arguments": {arguments}}}\n</tool_call>')
    return ("\n" if after_text and texts else "") + "\n".join(texts)


def _tool_turn(messages: Sequence[dict[str, Any]], index: int, text: str) -> str:
    """A tool's answer: Qwen3 puts those that follow each other into one user turn."""
    first = index == 0 or messages[index - 1]["role"] != "tool"
    last = index == len(messages) - 1 or messages[index + 1]["role"] != "tool"
    begin, end = (f"{IM_START}user" if first else ""), (f"{IM_END}\n" if last else "")
    return f"{begin}\n<tool_response>\n{text}\n</tool_response>{end}"


def render(messages: Sequence[dict[str, Any]], add_think_pattern: bool = True) -> list[Piece]:
    """Render a whole conversation for training: prompts and headers not learnt, every assistant turn with its end learnt.

    With ``add_think_pattern`` the last user turn gets the switch that fits the answer. As in Qwen3's template, thinking
    stays only in the turns after the last user turn, and the last answer always has a think block, empty or not.
    """
    if add_think_pattern:
        messages = with_switch(messages, is_thinking(messages))
    last_user = max((i for i, item in enumerate(messages) if item["role"] == "user"), default=-1)
    pieces: list[Piece] = []
    for index, item in enumerate(messages):
        text = message_text(item["content"])
        header = f"{IM_START}{item['role']}\n"
        if item["role"] == "tool":
            pieces.append(Piece(_tool_turn(messages, index, text), False))
            continue
        if item["role"] != "assistant":
            pieces.append(Piece(f"{header}{text}{IM_END}\n", False))
            continue
        thought, answer = split_thinking(text)
        thought = item.get("reasoning_content") or thought
        answer = answer.lstrip("\n")
        calls = tool_calls_text(item.get("tool_calls") or [], bool(answer))
        if index > last_user and (index == len(messages) - 1 or thought):
            thought_text = thought.strip("\n")
            answer = f"{THINK_OPEN}\n{thought_text}\n{THINK_CLOSE}\n\n{answer}"
        pieces += [Piece(header, False), Piece(answer + calls + IM_END, True), Piece("\n", False)]
    return pieces


def prompt_text(
    messages: Sequence[dict[str, Any]], thinking: bool | None = False, add_think_pattern: bool = True
) -> str:
    """The text that a model continues with its answer: ``messages`` without the answer, then the assistant's header.

    ``thinking`` False adds the empty think block (the model answers at once); True leaves it to think;
    None adds neither switch nor block.
    """
    if add_think_pattern and thinking is not None:
        messages = with_switch(messages, thinking)
    turns = "".join(piece.text for piece in render(messages, add_think_pattern=False))
    return f"{turns}{IM_START}assistant\n" + (EMPTY_THINK if thinking is False else "")


def encode(
    messages: Sequence[dict[str, Any]],
    tokenizer: Any,
    add_think_pattern: bool = True,
    only_assistant_loss: bool = True,
) -> Encoded:
    """Token ids and loss mask of a conversation, with a fast Hugging Face tokenizer.

    The text is tokenized whole (so that ids equal those of the chat template) and a token carries loss when it begins
    inside a learnt piece.
    """
    pieces = render(messages, add_think_pattern)
    coded = tokenizer("".join(piece.text for piece in pieces), add_special_tokens=False, return_offsets_mapping=True)
    spans, position = [], 0
    for piece in pieces:
        if piece.learn:
            spans.append((position, position + len(piece.text)))
        position += len(piece.text)
    ids, starts = coded["input_ids"], coded["offset_mapping"]
    if not only_assistant_loss:
        return Encoded(ids, [True] * len(ids))
    if starts and not isinstance(starts[0], int):  # pairs (first, end), as Hugging Face gives them
        starts = [first for first, _ in starts]
    mask = [False] * len(ids)
    for begin, end in spans:
        first, last = bisect.bisect_left(starts, begin), bisect.bisect_left(starts, end)
        mask[first:last] = [True] * (last - first)
    return Encoded(ids, mask)
