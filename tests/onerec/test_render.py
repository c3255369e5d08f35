"""Chat rendering agrees with the chat template, and the loss mask covers answers and nothing else."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onerec.render import RENDERERS, split_thinking
from onerec.render.base import is_thinking
from onerec.render.qwen3 import chat_template

QWEN3 = RENDERERS["qwen3"]


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-level tokenizer (256 bytes and Qwen3's chat tokens) with the project's template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tok = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tok.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tok.add_tokens(["<think>", "</think>"])
    tok.chat_template = chat_template()
    return tok


def turn(role, content):
    return {"role": role, "content": content}


SINGLE = [turn("system", "你是推荐助手。"), turn("user", "推荐什么？"), turn("assistant", "这个")]
THINKING = [turn("user", "1+1"), turn("assistant", "<think>\n一加一\n</think>\n\n二")]
MULTI = [
    turn("user", "a"),
    turn("assistant", "<think>\nb\n</think>\n\nc"),
    turn("user", "d"),
    turn("assistant", "e"),
]
# A call, two answers of tools, and what the model says then. Thinking before the call stays: it comes after the last
# user turn.
TOOLS = [
    turn("system", "可以调用工具。"),
    turn("user", "上海和北京天气？"),
    {
        **turn("assistant", "<think>\n查一下\n</think>\n\n稍等"),
        "tool_calls": [
            {"function": {"name": "weather", "arguments": {"city": "上海"}}},
            {"name": "weather", "arguments": '{"city": "北京"}'},
        ],
    },
    turn("tool", "晴"),
    turn("tool", "雨"),
    turn("assistant", "<think>\n一晴一雨\n</think>\n\n上海晴，北京雨"),
]
CONVERSATIONS = [SINGLE, THINKING, MULTI, TOOLS]


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_rendering_equals_the_chat_template(tokenizer, messages):
    ours = QWEN3.text(messages, add_think_pattern=False)
    assert ours == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("thinking", [True, False])
def test_prompt_equals_the_template_with_the_switch(tokenizer, thinking):
    ours = QWEN3.prompt_text(SINGLE[:2], thinking, add_think_pattern=False)
    assert ours == tokenizer.apply_chat_template(
        SINGLE[:2], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_exactly_the_answers_and_their_ends_are_learnt(tokenizer, messages):
    learnt = [i for i, learn in zip(*QWEN3.encode(messages, tokenizer), strict=True) if learn]
    expected = "".join(piece.text for piece in QWEN3.render(messages) if piece.learn)
    assert tokenizer.decode(learnt) == expected
    assert expected.count("<|im_end|>") == sum(m["role"] == "assistant" for m in messages)
    assert "推荐什么" not in expected


def test_without_only_assistant_loss_everything_is_learnt(tokenizer):
    assert all(QWEN3.encode(SINGLE, tokenizer, only_assistant_loss=False)[1])


def test_the_switch_fits_the_answer_and_the_empty_block_is_there():
    plain = QWEN3.text(SINGLE)
    assert "推荐什么？/no_think<|im_end|>" in plain and QWEN3.think_block() + "这个" in plain
    assert "1+1/think<|im_end|>" in QWEN3.text(THINKING)


def test_training_text_begins_with_the_prompt_that_evaluation_gives():
    whole = QWEN3.text(SINGLE)
    assert whole.startswith(QWEN3.prompt_text(SINGLE[:2], thinking=False))


def test_thinking_of_earlier_turns_is_dropped():
    text = QWEN3.text(MULTI)
    assert "<think>\nb" not in text and "assistant\nc<|im_end|>" in text


def test_tool_calls_are_learnt_and_what_tools_answer_is_not():
    """As Qwen3's published template has them."""
    text = "".join(f"[{piece.text}]" if piece.learn else piece.text for piece in QWEN3.render(TOOLS, False)[2:])
    assert text == (
        "<|im_start|>assistant\n[<think>\n查一下\n</think>\n\n稍等\n"
        '<tool_call>\n{"name": "weather", "arguments": {"city": "上海"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>]\n'
        "<|im_start|>user\n<tool_response>\n晴\n</tool_response>\n<tool_response>\n雨\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[<think>\n一晴一雨\n</think>\n\n上海晴，北京雨<|im_end|>]\n"
    )


def test_thinking_is_found():
    assert split_thinking("<think>\n因为\n</think>\n\n所以") == ("因为", "所以")
    assert split_thinking("没有") == ("", "没有")
    assert is_thinking(THINKING) and not is_thinking(SINGLE)


@pytest.mark.parametrize(
    ("files", "more"),
    [
        ({}, set()),
        ({"config.json": 7}, {7}),
        ({"config.json": 7, "generation_config.json": 8}, {8}),
        ({"generation_config.json": [8, 9]}, {8, 9}),
        ({"config.json": 7, "generation_config.json": None}, set()),
    ],
)
def test_an_answer_ends_by_the_tokenizers_end_and_those_of_the_checkpoint(tokenizer, tmp_path, files, more):
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps({} if value is None else {"eos_token_id": value}))
    own = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert QWEN3.end_ids(tmp_path, tokenizer) == sorted({own} | more)
    tokenizer.eos_token = "<|endoftext|>"
    try:
        assert QWEN3.end_ids(tmp_path, tokenizer) == sorted({own, tokenizer.eos_token_id} | more)
    finally:
        tokenizer.eos_token = "<|im_end|>"
