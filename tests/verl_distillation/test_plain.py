"""The student's and the teachers' places in a run without vLLM, without Ray: what is drawn, and what is scored."""

from __future__ import annotations

import asyncio
import time
import types
from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("verl") is None, reason="needs verl, which this platform has no build of")
SETTINGS = types.SimpleNamespace(seed=42, response_length=12, max_model_len=64)
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from pretrain import make_tiny_qwen3

    folder = tmp_path_factory.mktemp("model")
    (folder / "corpus.txt").write_text("What is 3 plus 4? The answer is 7.\n" * 50)
    tiny = "--hidden_size 32 --num_hidden_layers 2 --intermediate_size 64 --vocab_size 300 --initializer_range 0.3"
    make_tiny_qwen3.main([*tiny.split(), "--corpus", str(folder / "corpus.txt"), "--output_dir", str(folder / "hf")])
    return folder / "hf"


@pytest.fixture(scope="module")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def server_of(folder, step=1):
    from safetensors.torch import load_file

    from verl_distillation.plain import TextServer

    server = TextServer(str(folder), "float32", "", SETTINGS)
    weights = load_file(folder / "model.safetensors")
    server.take(list(weights.items()))
    server.renew(step)
    return server


def ask(server, prompts, **params):
    async def all_at_once():
        sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1} | params
        return await asyncio.gather(*(server.generate("x", prompt, sampling) for prompt in prompts))

    return asyncio.run(all_at_once())


def test_answers_are_drawn_by_step_and_prompt_whatever_comes_with_them(folder):
    server = server_of(folder)
    together = [out.token_ids for out in ask(server, PROMPTS)]
    server.take([(name, tensor.clone()) for name, tensor in server.weights.items()])
    server.renew(1)
    alone = [ask(server, [prompt])[0].token_ids for prompt in PROMPTS]
    assert together == alone
    assert [out.token_ids for out in ask(server, PROMPTS)] != alone, "asked once more, another draw"
    assert [out.token_ids for out in ask(server_of(folder, step=2), PROMPTS)] != alone


def test_the_log_probabilities_are_those_of_the_drawn_tokens(folder, model):
    server = server_of(folder)
    for prompt, out in zip(PROMPTS, ask(server, PROMPTS, temperature=0.7), strict=True):
        whole = torch.tensor([prompt + out.token_ids])
        with torch.no_grad():
            logprobs = model(whole).logits.float().log_softmax(-1)[0, len(prompt) - 1 : -1]
        expected = logprobs.gather(1, torch.tensor(out.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(out.log_probs), expected, atol=1e-4, rtol=1e-4)
        assert len(out.token_ids) <= SETTINGS.response_length
        assert not set(out.token_ids[:-1]) & set(server.ends), "nothing behind the end"


def test_draws_follow_the_softmax():
    from verl_distillation.plain import _Draw

    logits = torch.tensor([0.0, 1.0, 2.0]).repeat(4000, 1)
    draw = _Draw(range(4000), [2.0] * 4000, torch.device("cpu"))
    counts = draw(None, logits).argmax(-1).bincount(minlength=3) / 4000
    torch.testing.assert_close(counts, (logits[0] / 2).softmax(-1), atol=0.03, rtol=0)


def test_all_tokens_are_drawn_from(folder):
    with pytest.raises(NotImplementedError, match="all tokens"):
        ask(server_of(folder), PROMPTS[:1], top_p=0.5)


@pytest.mark.parametrize("k", [0, 3])
def test_a_teacher_scores_every_token_as_the_model_does(folder, model, k):
    from verl_distillation.plain import Teacher

    async def all_at_once():
        teacher = Teacher(str(folder))
        return await asyncio.gather(*(teacher.generate("x", ids, {"prompt_logprobs": k}) for ids in PROMPTS))

    for ids, out in zip(PROMPTS, asyncio.run(all_at_once()), strict=True):
        found, logprobs = out.extra_fields["prompt_ids"], out.extra_fields["prompt_logprobs"]
        assert found.shape == logprobs.shape == (len(ids), max(k, 1))
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits.float().log_softmax(-1)[0, :-1]
        values, chosen = expected.topk(k) if k else (expected.gather(1, torch.tensor(ids[1:])[:, None]), None)
        torch.testing.assert_close(torch.from_numpy(logprobs[:-1]), values, atol=1e-4, rtol=1e-4)
        assert found[:-1].tolist() == (chosen.tolist() if k else [[id] for id in ids[1:]])
        assert not found[-1].any() and not logprobs[-1].any()


def test_teachers_that_are_asked_at_once_load_one_after_another(folder, monkeypatch):
    """transformers' loading is no matter for two threads: one of the models would be left with random weights."""
    import transformers

    from verl_distillation.plain import Teacher

    load, at_once, most = transformers.AutoModelForCausalLM.from_pretrained, [], []

    def slowly(*args, **kwargs):
        at_once.append(1)
        time.sleep(0.2)
        most.append(len(at_once))
        try:
            return load(*args, **kwargs)
        finally:
            at_once.pop()

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", slowly)

    async def both():
        asked = [Teacher(str(folder)).generate("", [1, 2, 3], {"prompt_logprobs": 2}) for _ in range(2)]
        return await asyncio.gather(*asked)

    first, second = asyncio.run(both())
    assert most == [1, 1]
    assert (first.extra_fields["prompt_logprobs"] == second.extra_fields["prompt_logprobs"]).all()
