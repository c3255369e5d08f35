"""The agent loop against a server that answers by script: what becomes of thinking, items, and their absence."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from onerec.items.item import Item
from onerec.render import renderer_of
from onerec.sid import SidSpec
from tests.verl_rl.conftest import ROLLOUT
from verl_rl.assemble import Marks
from verl_rl.settings import RolloutSettings


class Server:
    """Answers requests for text with given texts and requests for items with given codes; remembers the requests."""

    def __init__(self, tokenizer, spec, texts=(), codes=()):
        self.tokenizer, self.spec, self.texts, self.codes, self.asked = tokenizer, spec, iter(texts), codes, []

    async def generate(self, request_id, *, prompt_ids, sampling_params):
        self.asked.append(sampling_params)
        if "items" in sampling_params:
            codes = self.codes[: sampling_params["items"].width]
            found = [Item(c, -1.5, (), tuple(self.spec.token_ids(c).tolist()), (-0.5,) * 3) for c in codes]
            return SimpleNamespace(extra_fields={"items": found, "global_steps": 4})
        ids = self.tokenizer(next(self.texts), add_special_tokens=False)["input_ids"]
        return SimpleNamespace(token_ids=ids, log_probs=[-1.0] * len(ids), extra_fields={"global_steps": 4})


@pytest.fixture(scope="module")
def parts(world):
    from transformers import AutoTokenizer

    folder = world / "model"
    return AutoTokenizer.from_pretrained(folder), SidSpec.load(folder), folder


def rollout(parts, texts=(), codes=(), validation=False, session=0, **changes):
    from verl_rl.rollout import TwoStageLoop

    tokenizer, spec, folder = parts
    values = {"beam_size": 3, "catalogues": {"default": "items"}, "ks": (1, 2), "val_beam_size": 3} | changes
    loop = TwoStageLoop.__new__(TwoStageLoop)
    loop.settings, loop.spec, loop.tokenizer = RolloutSettings(**ROLLOUT | values), spec, tokenizer
    loop.renderer, loop.marks = renderer_of(folder), Marks.of(folder, tokenizer, spec)
    loop.rollout_config = SimpleNamespace(prompt_length=100, response_length=60, temperature=1.0)
    loop.server_manager = server = Server(tokenizer, spec, texts, codes)
    row = {
        "raw_prompt": [{"role": "user", "content": "看过"}],
        "reward_model": {"ground_truth": spec.format((1, 2, 3))},
        "session_id": session,
        "data_source": "onerec/video",
        "index": 7,
        "global_steps": 1,
        "onerec_validation": validation,
    }
    out = asyncio.run(loop.run({"temperature": 1.0}, **row))
    return (out if isinstance(out, list) else [out]), server


CODES = [(0, 0, 0), (1, 2, 3), (1, 2, 0)]


def test_every_item_is_an_output_with_its_own_reward(parts):
    outputs, _ = rollout(parts, codes=CODES)
    tokenizer, spec, _ = parts
    assert [output.own_reward for output in outputs] == [0, 1, 0]
    assert [output.own_info["partial_hit"] for output in outputs] == pytest.approx([0, 1, 2 / 3])
    assert tokenizer.decode(outputs[1].response_ids) == "<think>\n\n</think>\n\n" + spec.format((1, 2, 3))
    # Only the three codes are the model's own.
    assert outputs[0].response_mask[-4:] == [1, 1, 1, 0] and sum(outputs[0].response_mask) == 3
    assert outputs[0].extra_fields["max_global_steps"] == 4
    assert outputs[0].own_info["missing_beams"] == 0 and outputs[0].own_info["valid_sid"] == 1


def test_fewer_items_than_beams_are_counted(parts):
    outputs, _ = rollout(parts, codes=CODES[:2])
    assert len(outputs) == 2 and outputs[0].own_info["missing_beams"] == 1


def test_thinking_is_sampled_and_its_tokens_learnt(parts):
    outputs, server = rollout(parts, texts=["<think>\nhm\n</think>"], codes=CODES, think=True, nonthink=False)
    thought = len(parts[0]("<think>\nhm\n</think>", add_special_tokens=False)["input_ids"])
    assert sum(outputs[0].response_mask) == thought + 3
    assert outputs[0].own_info["think_format"] == 1 and outputs[0].own_info["thinking_cut"] == 0
    assert (
        server.asked[0]["max_tokens"] == 8
        and parts[0].convert_tokens_to_ids("</think>") in server.asked[0]["stop_token_ids"]
    )


def test_with_both_switches_off_the_model_decides_whether_it_thinks(parts):
    """OpenOneRec's own defaults, ENABLE_THINK=False and ENABLE_NONTHINK=False."""
    for text in ("<think>\nhm\n</think>", "<think>\n\n</think>"):
        outputs, server = rollout(parts, texts=[text], codes=CODES, think=False, nonthink=False)
        prompt = parts[0].decode(outputs[0].prompt_ids)
        assert "think" not in prompt and server.asked[0]["max_tokens"] == 8
        assert outputs[1].own_info["full_hit"] == 1 and outputs[1].own_info["thinking_cut"] == 0


def test_thinking_that_never_closes_is_closed_and_counted(parts):
    outputs, _ = rollout(parts, texts=["<think>\nhm hm"], codes=CODES, think=True, nonthink=False)
    info = outputs[1].own_info
    assert (info["thinking_cut"], info["think_format"], info["full_hit"]) == (1, 0, 1)


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|endoftext|>"])
def test_thinking_that_ends_the_answer_is_stopped_and_its_mark_not_learnt(parts, mark):
    outputs, server = rollout(parts, texts=["<think>\nhm" + mark], codes=CODES, think=True, nonthink=False)
    info, written = outputs[1].own_info, len(parts[0]("<think>\nhm", add_special_tokens=False)["input_ids"])
    assert (info["thinking_stopped"], info["thinking_cut"], info["think_format"]) == (1, 0, 0)
    assert info["thinking_tokens"] == written and mark not in parts[0].decode(outputs[1].response_ids)
    assert parts[0].convert_tokens_to_ids(mark) in server.asked[0]["stop_token_ids"]


def test_a_model_that_opens_no_sid_has_one_malformed_output(parts):
    outputs, _ = rollout(
        parts,
        texts=["<think>\nhm\n</think>\n\nhm"],
        codes=CODES,
        think=True,
        nonthink=False,
        force_prefix=False,
    )
    info = outputs[0].own_info
    assert len(outputs) == 1 and info["thinking_no_item"] == 1 and info["malformed/no_sid"] == 1
    assert info["missing_beams"] == 3 and outputs[0].own_reward == 0


def test_sampled_items_have_a_seed_of_their_own_for_every_rollout(parts):
    seeds = [
        rollout(parts, codes=CODES, stage2="sample", session=session)[1].asked[0]["items"].seed for session in (0, 1, 0)
    ]
    assert seeds[0] == seeds[2] != seeds[1]
    assert rollout(parts, codes=CODES)[1].asked[0]["items"].seed is None


def test_the_switches_go_to_the_server(parts):
    assert rollout(parts, codes=CODES)[1].asked[0]["items"].catalogue == "items"
    assert rollout(parts, codes=CODES, constrained=False)[1].asked[0]["items"].catalogue is None
    thinks = [
        len(rollout(parts, texts=["<think>\nhm\n</think>"], codes=CODES, think=True, session=s)[1].asked)
        for s in (0, 1)
    ]
    assert thinks == [2, 1]


@pytest.mark.parametrize("mark", ["<|im_end|>", "<|endoftext|>"])
def test_single_stage_is_one_sample(parts, mark):
    spec = parts[1]
    outputs, server = rollout(parts, texts=[spec.format((1, 2, 3)) + mark], two_stage=False, beam_size=1)
    assert parts[0].convert_tokens_to_ids(mark) in server.asked[0]["stop_token_ids"]
    assert len(outputs) == 1 and outputs[0].own_reward == 1 and len(server.asked) == 1
    assert sum(outputs[0].response_mask) == 6
    bad, _ = rollout(parts, texts=["hm"], two_stage=False, beam_size=1)
    assert bad[0].own_reward == 0 and bad[0].own_info["malformed/no_sid"] == 1


def test_a_validation_row_is_one_output_that_ranks_its_beams(parts):
    outputs, _ = rollout(parts, codes=CODES, validation=True)
    info = outputs[0].own_info
    assert len(outputs) == 1
    assert [info[name] for name in ("pass@1", "pass@2", "recall@1", "recall@2")] == [0, 1, 0, 1]


def test_a_response_is_never_longer_than_verl_allows(parts):
    outputs, _ = rollout(parts, texts=["<think>" + "hm " * 60], codes=CODES, think=True, nonthink=False)
    lengths = {len(part) for o in outputs for part in (o.response_ids, o.response_mask, o.response_logprobs)}
    assert lengths == {60} and len(list(itertools.chain(outputs))) == 3
