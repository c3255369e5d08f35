"""Backends give the model's own numbers; thinking and sampling; prompts that do not fit."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from benchmarks.backends import open_backend
from benchmarks.backends.base import Sampling
from benchmarks.backends.hf import HfBackend
from benchmarks.backends.vllm import VllmBackend, vllm_share
from benchmarks.evaluate import main
from benchmarks.model import BenchModel, windows
from benchmarks.prompts import Prompts
from onerec.catalog import ItemIndex
from onerec.distributed.tasks import ON_A_BUSY_MACHINE, start
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.qwen3 import engine_bytes, shape_of
from onerec.records import message
from onerec.sid import SidSpec
from tests.arguments import as_flags

TEXTS = ["看过一些", "推荐", "你好，请推荐一个视频"]


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return BenchModel(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def prompts(model):
    return model.tokenizer(TEXTS)["input_ids"]


@pytest.fixture(scope="module")
def catalogue():
    rng = np.random.default_rng(0)
    return ItemIndex(np.arange(40), rng.integers(0, 4, (40, 3)).astype(np.int32), SidSpec((4, 4, 4)))


def collected(batches, n):
    found = dict(pair for batch in batches for pair in batch)
    return [found[i] for i in range(n)]


def test_a_prompts_draws_do_not_depend_on_its_batch(model, prompts):
    sampling = Sampling(temperature=1.0, seed=3)
    together = model.generate(prompts, 8, [], "t", sampling)
    alone = [model.generate([prompt], 8, [], "t", sampling)[0] for prompt in prompts]
    other = model.generate(prompts, 8, [], "t", Sampling(temperature=1.0, seed=4))
    assert together == alone and together != other


def test_samples_follow_the_models_probabilities(model, prompts):
    """The most likely token's share of 200 first tokens is its probability, give or take three standard errors."""
    logits = model.backend.model(torch.tensor([prompts[0]])).logits[0, -1].detach()
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (2.0, 0.5)):
        chance = (logits / temperature).softmax(-1)
        best = int(chance.argmax())
        if top_p < 1:
            kept = chance.sort(descending=True).values
            kept = kept[: int((kept.cumsum(0) < top_p).sum()) + 1]
            expected = float(chance[best] / kept.sum())
        else:
            expected = float(chance[best])
        tokens = []
        for seed in range(200):
            [batch] = model.backend.generate([prompts[0]], 1, [], Sampling(temperature, top_p, seed))
            tokens.append(batch[0][1][0])
        share = np.mean([token == best for token in tokens])
        assert abs(share - expected) < 3 * np.sqrt(expected * (1 - expected) / 200) + 1e-6


def test_an_answer_ends_where_the_checkpoint_says_and_the_mark_is_no_part_of_it(
    tiny_checkpoint, model, prompts, tmp_path
):
    """The greedy answer's third token becomes an end token: two tokens are left, as vLLM would leave them."""
    [answer] = model.generate(prompts[:1], 8, [], "t")
    third = next(at for at in range(2, 8) if answer[at] not in answer[:at])
    folder = tmp_path / "ends"
    shutil.copytree(tiny_checkpoint, folder)
    for eos in (answer[third], [answer[third], 1]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        ended = BenchModel(folder, device="cpu")
        assert ended.generate(prompts[:1], 8, [], "t") == [answer[:third]]
        # What the caller stops at stays, though it is an end too.
        assert ended.generate(prompts[:1], 8, [answer[third]], "t") == [answer[: third + 1]]
        [thought] = ended.think(prompts[:1], 8, "t")
        assert answer[third] not in thought[len(prompts[0]) :]


def test_a_checkpoints_own_way_of_choosing_tokens_is_not_mixed_in(tiny_checkpoint, model, prompts, tmp_path):
    folder = tmp_path / "steered"
    shutil.copytree(tiny_checkpoint, folder)
    steered = {"repetition_penalty": 100.0, "do_sample": True, "temperature": 9.0, "min_new_tokens": 3}
    (folder / "generation_config.json").write_text(json.dumps(steered))
    assert BenchModel(folder, device="cpu").generate(prompts, 8, [], "t") == model.generate(prompts, 8, [], "t")


def test_windows_score_every_token_but_the_first_once():
    text = list(range(10))
    assert windows(text, 4) == [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3), ([6, 7, 8, 9], 3)]
    # What is left for the last window has as much before it as fits.
    assert windows(text[:9], 4) == [([0, 1, 2, 3], 3), ([3, 4, 5, 6], 3), ([5, 6, 7, 8], 2)]
    assert windows(text, 10) == windows(text, 99) == [(text, 9)]
    assert windows([0], 4) == []


def test_in_bfloat16_probabilities_and_the_next_token_are_not_rounded_to_its_8_bits(tiny_checkpoint, prompts):
    """Scores from the hidden states equal float64's; rounded logits would be off by 0.004 and more, and tie."""
    backend = BenchModel(tiny_checkpoint, device="cpu", precision="bf16").backend
    head = backend.model.get_output_embeddings().weight
    assert head.dtype == torch.bfloat16

    def truth(ids):
        with torch.inference_mode():
            states = backend.model.model(torch.tensor([ids])).last_hidden_state[0, -1]
            return (head.double() @ states.double()).log_softmax(-1).numpy()

    for ids in prompts:
        [row] = collected(backend.next_logprobs([ids], range(len(head))), 1)
        np.testing.assert_allclose(row, truth(ids), atol=1e-4)
        [last] = collected(backend.tail_logprobs([ids], [1]), 1)
        assert last == pytest.approx(truth(ids[:-1])[ids[-1]], abs=1e-4)
        assert collected(backend.generate([ids], 1, [], Sampling()), 1) == [[truth(ids).argmax()]]


def test_a_text_longer_than_the_context_is_scored_whole(model):
    ids = model.tokenizer("很长的文本，" * 60)["input_ids"]
    parts = windows(ids, model.context)
    assert len(ids) > 2 * model.context and len(parts) == 3
    expected = 0.0
    for part, last in parts:
        with torch.inference_mode():
            logits = model.backend.model(torch.tensor([part[:-1]])).logits[0, -last:]
        expected += logits.log_softmax(-1).gather(1, torch.tensor(part[-last:])[:, None]).sum().item()
    found = model.rolling_logprobs([ids, ids[:1], ids[:7]], "t")
    assert found == pytest.approx([expected, 0, model.text_logprobs([ids[:7]], "t", [6])[0]], rel=1e-4)


def evaluate(checkpoint, data, *more):
    output = data.parent / "r"
    main(
        as_flags(
            *more,
            model_path=checkpoint,
            result_name="x",
            data_dir=data,
            output_dir=output,
            num_beams=16,
            max_thinking_tokens=4,
        )
    )
    folder = output / "results_x"
    return json.loads((folder / "metrics.json").read_text())["tasks"], folder


def test_sampled_thinking_through_the_whole_evaluation(tiny_checkpoint, tiny_data):
    flags = ["--enable_thinking", "true", "--thinking_temperature", "0.8"]
    tasks, folder = evaluate(tiny_checkpoint, tiny_data, *flags)
    assert tasks["video"]["recall@32"] == 1 and tasks["label_pred"]["samples"] == 12
    predictions = folder / "predictions_video.jsonl"
    first = [json.loads(line)["thought"] for line in predictions.read_text().splitlines()]
    evaluate(tiny_checkpoint, tiny_data, *flags, "--seed", "1")
    assert first != [json.loads(line)["thought"] for line in predictions.read_text().splitlines()]


def test_thinking_that_is_never_closed_leaves_room_for_the_item_in_a_full_context(tiny_checkpoint, tiny_data):
    """Prompts of all lengths near the context's end: the marks that close the thinking have their place too."""
    spec, rows = SidSpec((4, 4, 4)), []
    for i in range(5):
        prompt = json.dumps([message("user", "x" * i + "".join(spec.text([j % 4, 0, 0]) for j in range(200)))])
        metadata = json.dumps({"uid": i, "answer": spec.text([0, 0, 0]), "answer_pid": [0], "history_pid": [1]})
        rows.append({"uuid": str(i), "source": "s", "messages": prompt, "metadata": metadata})
    write_table(tiny_data / "video" / "video_test.parquet", pa.Table.from_pylist(rows))
    tasks, _ = evaluate(tiny_checkpoint, tiny_data, "--tasks", "video", "--enable_thinking")
    assert tasks["video"]["samples"] == 5


def test_a_long_prompt_loses_its_oldest_items_and_keeps_the_rest(model):
    spec = model.spec
    items = [spec.text([i % 4, i // 4 % 4, i // 16]) for i in range(40)]
    conversation = [
        {"role": "system", "content": "规则"},
        {"role": "user", "content": "看过" + "，".join(items) + "。推荐"},
    ]
    prompts = Prompts(model.tokenizer, 300, spec, model.renderer)
    [ids] = prompts.encode([conversation], False, 8)
    text = model.tokenizer.decode(ids)
    assert len(ids) <= 292 and prompts.truncated == 1
    kept = spec.parse(text)
    assert 20 < len(kept) < 40 and kept == [spec.parse(item)[0] for item in items[-len(kept) :]]
    assert "规则" in text and "看过<|sid_begin|>" in text and "。推荐" in text


def test_a_long_prompt_without_items_loses_the_beginning_of_its_question(model):
    conversation = [{"role": "system", "content": "rule"}, {"role": "user", "content": "x" * 400 + "end"}]
    prompts = Prompts(model.tokenizer, 200, model.spec, model.renderer)
    [ids] = prompts.encode([conversation], False, 8)
    text = model.tokenizer.decode(ids)
    assert len(ids) == 192 and "rule" in text and "xend" in text and text.count("<|im_start|>") == 3
    with pytest.raises(InputError, match="has a context of 200 tokens, and 200 are for its answer"):
        prompts.encode([conversation], False, 200)


def test_a_tokenizer_without_the_sids_is_named(tiny_checkpoint, tiny_data, tmp_path):
    folder = tmp_path / "plain"
    shutil.copytree(tiny_checkpoint, folder)
    value = json.loads((folder / "tokenizer.json").read_text())
    value["added_tokens"] = [t for t in value["added_tokens"] if not t["content"].startswith("<s_c")]
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"its tokenizer has <s_c_0> at"):
        evaluate(folder, tiny_data, "--tasks", "video")
    assert not (tiny_data.parent / "r" / "results_x" / "run.json").exists()


def test_a_backend_that_is_not_installed_is_one_line(tiny_checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match="vLLM cannot be imported"):
        open_backend("vllm", tiny_checkpoint, None)


@pytest.mark.parametrize("device", ["cudda", "cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_one_line(tiny_checkpoint, tiny_data, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=f"--device: {device} is not there"):
        evaluate(tiny_checkpoint, tiny_data, "--tasks", "video", "--device", device)
    assert not (tiny_data.parent / "r" / "results_x").exists()


def test_items_of_the_vllm_backend_are_those_of_hf_and_start_no_vllm(
    tiny_checkpoint, model, prompts, catalogue, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    hf, vllm = HfBackend(tiny_checkpoint, model.tokenizer, "cpu"), VllmBackend(tiny_checkpoint)
    n, spec = len(prompts), model.spec
    assert vllm.context == hf.context
    for normalize in ("vocabulary", "level"):
        for beams in (64, 3):
            ours, theirs = (collected(b.rank(prompts, catalogue, spec, beams, None, normalize), n) for b in (hf, vllm))
            for a, b in zip(ours, theirs, strict=True):
                assert [h.codes for h in a] == [h.codes for h in b] and [h.pids for h in a] == [h.pids for h in b]
                np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=1e-4)
    banned = [[h.codes for h in row[:1]] for row in ours]
    ours, theirs = (collected(b.rank(prompts, catalogue, spec, 3, banned), n) for b in (hf, vllm))
    assert [[h.codes for h in row] for row in ours] == [[h.codes for h in row] for row in theirs]
    assert not any(sids[0] in [h.codes for h in row] for sids, row in zip(banned, theirs, strict=True))
    # A second catalogue takes the place of the first.
    [[only]] = collected(
        vllm.rank(prompts[:1], ItemIndex(np.array([7]), np.array([[3, 3, 3]]), SidSpec((4, 4, 4))), spec, 3), 1
    )
    assert only.codes == (3, 3, 3) and only.pids == (7,)
    assert list(vllm.rank(prompts, catalogue, spec, 3, done={0, 1, 2})) == []


def test_vllm_takes_what_the_item_engine_leaves_of_a_gpu(tiny_checkpoint, tmp_path):
    """Weights of two bytes, keys and values of a batch and 1 GiB of blocks are the engine's share of 80 GiB."""
    memory = 80 << 30
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    shape = shape_of(config)
    weights = 384 * 64 * (1 if config["tie_word_embeddings"] else 2) + 2 * 64 * ((2 + 2 + 1 + 1) * 32 + 3 * 64)
    states = 2 * 1 * 32 * 2 + 6 * 64 + 3 * 64  # two layers' keys and values, one layer's inner states
    taken = 2 * weights + 2 * 1000 * states + (1 << 30)
    assert engine_bytes(shape, 1000) == taken
    assert vllm_share(tiny_checkpoint, 1, memory, 1000) == pytest.approx(0.9 - taken / memory)
    plain = tmp_path / "plain"
    shutil.copytree(tiny_checkpoint, plain)
    (plain / "sid_spec.json").unlink()
    assert vllm_share(plain, 1, memory, 1000) == 0.9
    big = shutil.copytree(tiny_checkpoint, tmp_path / "big")
    larger = {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 64, "num_key_value_heads": 8}
    larger |= {"intermediate_size": 25600, "head_dim": 128, "vocab_size": 176_384, "tie_word_embeddings": False}
    (big / "config.json").write_text(json.dumps(config | larger))
    line = r"does not fit one GPU of 72.0 GiB \(33.01 B weights of 2 bytes are 61.5, a batch of 1,000 tokens 1.4, vLLM"
    with pytest.raises(InputError, match=line):
        vllm_share(big, 2, memory, 1000)


@pytest.mark.slow
def test_vllm_gives_what_hf_gives(tiny_checkpoint, model, prompts):
    """One engine, every question of text that the benchmark asks: answers, their log-probabilities, and draws."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    hf = HfBackend(tiny_checkpoint, model.tokenizer, "cpu")
    vllm = open_backend("vllm", tiny_checkpoint, model.tokenizer, tensor_parallel=1, data_parallel=1)
    n = len(prompts)
    ours, theirs = (collected(b.next_logprobs(prompts, [5, 9, 5]), n) for b in (hf, vllm))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    last = [3, 1, len(prompts[2]) - 1]
    ours, theirs = (collected(b.tail_logprobs(prompts, last), n) for b in (hf, vllm))
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    end = model.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ours, theirs = (collected(b.generate(prompts, 6, [end], Sampling()), n) for b in (hf, vllm))
    assert ours == theirs
    drawn = [collected(vllm.generate(prompts, 6, [end], Sampling(1.0, 0.9, seed)), n) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert list(vllm.generate(prompts, 6, [end], Sampling(), done={0, 1, 2})) == []


@pytest.mark.slow
def test_copies_of_the_model_share_the_batches_by_ray(tiny_checkpoint, catalogue, monkeypatch):
    """Two Ray actors stand for two engines: each prompt comes back once with its result; finished ones are skipped."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from benchmarks.backends import vllm

    class Echo:
        def __init__(self, path, tensor_parallel, precision, token_budget):
            self.calls, self.taken = 0, []

        def generate(self, prompts, max_tokens, stop, sampling):
            self.calls += 1
            return [[*prompt, max_tokens] for prompt in prompts]

        def use(self, index):
            self.taken.append(len(index.sids))

        def rank(self, prompts, num_beams, exclude, normalize, also):
            if num_beams > 99:
                raise InputError("the model", "does not fit", "a larger GPU")
            return [[*prompt, num_beams, self.taken[-1]] for prompt in prompts]

        def catalogues(self):
            return self.taken

        def count(self):
            return self.calls

        def code(self):
            return os.environ["PYTHONPATH"]

    monkeypatch.setattr(vllm, "Engine", Echo)
    monkeypatch.setattr(vllm, "_BATCH", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name, value in ON_A_BUSY_MACHINE.items():
        monkeypatch.setenv(name, value)  # and gone behind the test
    start(ray, num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        backend = vllm.VllmBackend(tiny_checkpoint, 1, 2)
        prompts = [[i] for i in range(9)]
        found = dict(pair for batch in backend.generate(prompts, 7, [], Sampling(), {2, 3, 4}) for pair in batch)
        assert found == {i: [i, 7] for i in (0, 1, 4, 5, 6, 7, 8)}  # 2 and 3 are a whole batch, 4 is half of one
        calls = ray.get([actor.count.remote() for actor in backend.actors])
        assert sum(calls) == 4 and min(calls) >= 1
        assert ray.get(backend.actors[0].code.remote()) == str(Path(vllm.__file__).parents[2])
        # The catalogue goes to each actor once, not with each batch; what an actor refuses is one line.
        found = dict(pair for batch in backend.rank(prompts, catalogue, catalogue.spec, 5) for pair in batch)
        assert found == {i: [i, 5, len(catalogue.sids)] for i in range(9)}
        assert ray.get([actor.catalogues.remote() for actor in backend.actors]) == [[len(catalogue.sids)]] * 2
        with pytest.raises(InputError, match=r"^the model: does not fit; a larger GPU$"):
            list(backend.rank(prompts, catalogue, catalogue.spec, 100))
    finally:
        ray.shutdown()
    with pytest.raises(InputError, match="0 means all GPUs, and there are none"):
        vllm.VllmBackend(tiny_checkpoint, 1, 0)
