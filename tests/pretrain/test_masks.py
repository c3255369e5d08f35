"""Loss masks on real conversations, against the checkpoint's chat template: answers and their ends, nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onerec.records import record_uuid, write_records
from tests.pretrain.test_dataset import load

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "test.jsonl"
ANSWER = re.compile(r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)", re.DOTALL)
CALCULATED = re.compile(r"<<(.+?)=(.+?)>>")


def say(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def conversations() -> list[tuple[list[dict], bool]]:
    """(messages, whether the last answer thinks): school maths in one turn and two, with and without a calculator."""
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()[:60]]
    found = []
    for i, row in enumerate(rows):
        work, _, result = row["answer"].partition("\n#### ")
        thought = "<think>\n" + CALCULATED.sub(r"\2", work) + "\n</think>\n\n"
        asked, other = say("user", row["question"]), rows[i - 1]
        earlier = [say("user", other["question"]), say("assistant", thought + "It is done.")]
        found += [
            ([asked, say("assistant", result)], False),
            ([asked, say("assistant", thought + result)], True),
            ([say("system", "Answer briefly."), *earlier, asked, say("assistant", result)], False),
            ([*earlier, asked, say("assistant", thought + result)], True),
        ]
        if steps := CALCULATED.findall(work):
            calls = [{"function": {"name": "calculator", "arguments": {"expression": e}}} for e, _ in steps]
            called = say("assistant", thought + "Let me see.", tool_calls=calls)
            answers = [say("tool", value) for _, value in steps]
            found.append(([*earlier, asked, called, *answers, say("assistant", result)], False))
    return found


@pytest.mark.skipif(not REAL.is_file(), reason="needs gsm8k, which is not part of the repository")
@pytest.mark.parametrize("switch", [False, True])
def test_masks_of_real_conversations(world, tmp_path, switch):
    from transformers import AutoTokenizer

    talks = conversations()
    assert len(talks) > 280
    records = [
        {
            "uuid": record_uuid("real", i),
            "source": "gsm8k",
            "metadata": "{}",
            "segments": None,
            "messages": json.dumps(messages),
        }
        for i, (messages, _) in enumerate(talks)
    ]
    write_records(tmp_path / "part-0.parquet", records)
    config = {"sources": str(tmp_path), "max_length": 4096, "add_think_pattern": switch}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, samples, manifest = load(world, tmp_path / "config.json")
    assert len(samples) == len(talks) and not manifest.dropped
    tokenizer = AutoTokenizer.from_pretrained(world / "base_itemic")
    for i, (messages, thinks) in enumerate(talks):
        if switch:
            last = max(place for place, item in enumerate(messages) if item["role"] == "user")
            asked = messages[last]["content"] + ("/think" if thinks else "/no_think")
            messages = [*messages[:last], say("user", asked), *messages[last + 1 :]]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        place = slice(samples.starts[i], samples.starts[i + 1])
        assert samples.ids[place].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        learnt = tokenizer.decode(samples.ids[place][samples.learn[place]])
        assert learnt == "".join(ANSWER.findall(text))
        assert learnt.count("<|im_end|>") == sum(item["role"] == "assistant" for item in messages)
