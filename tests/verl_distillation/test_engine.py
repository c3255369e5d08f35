"""The student's engine, with a head behind the responses only, says of response tokens what verl's own says."""

from __future__ import annotations

import functools
import types
from importlib.util import find_spec

import pytest
import torch

from verl_distillation.settings import ANCHOR_KEY

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM, which this platform has no build of")
START = 40  # first extended id of 54


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """`StudentEngine` of one process, without the workers around it; the tests set its model's configuration."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "onerec.verl.cpu")
    import verl  # noqa: F401  it takes the platform by the variables, unless an earlier test has imported it
    from verl.utils.torch_functional import entropy_from_logits

    import onerec.verl.cpu  # noqa: F401
    from verl_distillation.verl_plugin import StudentEngine

    engine = StudentEngine.__new__(StudentEngine)
    engine.compute_entropy_from_logits = entropy_from_logits  # as verl has it where nothing is compiled
    engine.use_ulysses_sp = engine.pad_to_length = False
    engine.engine_config = types.SimpleNamespace(entropy_checkpointing=False)
    yield engine
    monkeypatch.undo()


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=54,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_implementation="sdpa",
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config)


def nested(rows):
    return torch.nested.nested_tensor_from_jagged(
        torch.cat(rows), torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    )


def micro_batch(temperature, topk, packed=False):
    """Three rows of other lengths; the last one's teacher has the extended ids, the first one's has not."""
    from verl.utils import tensordict_utils as tu

    prompts = [torch.tensor(row) for row in ([1, 2, 41, 4, 5], [6, 7], [8, 45, 9])]
    responses = [torch.tensor(row) for row in ([10, 11], [12, 42, 13, 14], [44, 15, 16])]
    rows = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    generator = torch.Generator().manual_seed(1)
    highest = (START, START, 54)
    ids = [torch.randint(most, (len(row), 4), generator=generator) for row, most in zip(rows, highest, strict=True)]
    ids[2][:, 0] = 50
    logprobs = [torch.randn(len(row), 4, generator=generator).log_softmax(-1) - 0.1 for row in rows]
    tensors = {
        "prompts": nested(prompts),
        "responses": nested(responses),
        "input_ids": nested(rows),
        "position_ids": nested([torch.arange(len(row)) for row in rows]),
        "teacher_ids": nested(ids),
        "teacher_logprobs": nested(logprobs),
        ANCHOR_KEY: torch.tensor([[0], [0], [1]], dtype=torch.uint8),
    }
    settings = {
        "temperature": temperature,
        "use_remove_padding": packed,
        "calculate_entropy": True,
        "distillation_use_topk": topk,
        "pad_token_id": 0,
    }
    return tu.get_tensordict(tensors, settings)


def loss(topk):
    """verl's processor of logits for the top-k loss."""
    from verl.trainer.distillation import distillation_ppo_loss

    settings = types.SimpleNamespace(use_chunked_topk=False, log_prob_min_clamp=None)
    return functools.partial(
        distillation_ppo_loss,
        config=types.SimpleNamespace(strategy="fsdp2"),
        distillation_config=types.SimpleNamespace(distillation_loss=settings),
    )


def results(engine, kind, model, batch, topk):
    """Outputs by name and the gradient of their sum at response tokens, by the engine class ``kind``."""
    inputs, extra = kind.prepare_model_inputs(engine, batch)
    outputs = kind.prepare_model_outputs(engine, model(**inputs, use_cache=False), extra, batch, loss(topk))
    firsts = batch["prompts"].offsets().diff() - 1
    values = {
        name: torch.cat([row[int(first) : -1] for row, first in zip(value.unbind(), firsts, strict=True)])
        for name, value in outputs.items()
    }
    model.zero_grad()
    sum(value.sum() for value in values.values() if value.requires_grad).backward()
    return values, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("topk", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_response_tokens_get_what_verls_own_engine_gives_them(engine, model, topk, temperature):
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    engine.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace())
    batch = micro_batch(temperature, topk)
    (theirs, their_gradients), (ours, our_gradients) = (
        results(engine, kind, model, batch, topk) for kind in (FSDPEngineWithLMHead, type(engine))
    )
    assert theirs.keys() == ours.keys() and {"log_probs", "entropy"} <= ours.keys()
    assert ("distillation_losses" in ours) == topk
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, atol=1e-5, rtol=1e-3)


def test_entropies_are_computed_by_what_verl_compiles_on_a_gpu(engine, model, monkeypatch):
    """In eager steps they take several times the memory of the logits, which are a large model's largest tensor."""
    engine.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace())
    monkeypatch.setattr(engine, "compute_entropy_from_logits", lambda logits: logits.new_full(logits.shape[:-1], 7.0))
    values, _ = results(engine, type(engine), model, micro_batch(1.0, False), False)
    assert values["entropy"].tolist() == [7.0] * 9


def test_extended_logits_learn_from_anchors_only(engine, model):
    """By the prompt's kind, whatever ids its teacher happens to say."""
    config = types.SimpleNamespace(extend_vocab_start=START, extended_logits="fixed")
    engine.model_config = types.SimpleNamespace(hf_config=config)
    gradients = {}
    for rows in ("general", "anchor"):
        batch = micro_batch(1.0, True)
        if rows == "general":
            batch[ANCHOR_KEY].zero_()
        else:
            batch["teacher_ids"].values().clamp_(max=START - 1)
        values, found = results(engine, type(engine), model, batch, True)
        gradients[rows] = found["lm_head.weight"][START:]
        assert all(torch.isfinite(value).all() for value in values.values())
    assert gradients["general"].abs().max() == 0
    assert gradients["anchor"].abs().max() > 0


def test_masked_extended_logits_are_out_of_the_softmax(engine, model):
    config = types.SimpleNamespace(extend_vocab_start=START, extended_logits="masked")
    engine.model_config = types.SimpleNamespace(hf_config=config)
    values, gradients = results(engine, type(engine), model, micro_batch(1.0, False), False)
    assert gradients["lm_head.weight"][START:].abs().max() == 0
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 41, 4, 5, 10]])).logits[0, -1, :START]
    assert values["log_probs"][1].item() == pytest.approx(logits.log_softmax(-1)[11].item(), abs=1e-5)


def test_a_packed_row_keeps_the_rows_before_response_tokens(engine, model):
    engine.model_config = types.SimpleNamespace(hf_config=types.SimpleNamespace())
    inputs, extra = engine.prepare_model_inputs(micro_batch(1.0, False, packed=True))
    # Prompts of 5, 2 and 3 tokens, responses of 2, 4 and 3.
    assert inputs["logits_to_keep"].tolist() == [4, 5, 8, 9, 10, 11, 15, 16, 17]
    assert inputs["input_ids"].shape == (1, 19) and extra["asked"] is None


@pytest.mark.parametrize("k", [0, 3])
def test_a_teachers_tensors_hold_what_verl_makes_of_vllms_objects(k):
    from verl.workers.rollout.vllm_rollout.utils import extract_prompt_logprobs
    from vllm import SamplingParams
    from vllm.v1.engine.logprobs import LogprobsProcessor
    from vllm.v1.outputs import LogprobsTensors

    from verl_distillation.teacher import TensorLogprobs, rows

    # Five tokens of a vocabulary of 9 in two chunks, as the engine sends them: the token itself, then the k likeliest.
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    tokens = torch.tensor([4, 0, 8, 2, 2])
    top = logits.topk(k, dim=-1)
    own = logits.gather(1, tokens[:, None])
    ids = torch.cat([tokens[:, None], top.indices], 1).int()
    values, ranks = torch.cat([own, top.values], 1), (logits >= own).sum(1)
    answers = []
    request = types.SimpleNamespace(sampling_params=SamplingParams(prompt_logprobs=k, detokenize=False))
    for kind in (LogprobsProcessor, TensorLogprobs):
        processor = kind.from_new_request(None, request)
        for part in (slice(0, 2), slice(2, 5)):
            processor._update_prompt_logprobs(LogprobsTensors(ids[part], values[part], ranks[part]))
        answers.append(processor.prompt_logprobs)
    theirs: dict[str, list] = {}
    extract_prompt_logprobs(types.SimpleNamespace(prompt_logprobs=answers[0]), k, theirs)
    found = rows(answers[1], k)
    assert found[0].tolist() == theirs["prompt_ids"]
    assert found[1].tolist() == theirs["prompt_logprobs"]
    assert rows([None], k)[0].shape == (1, max(k, 1)), "a sequence of one token has the closing row alone"
