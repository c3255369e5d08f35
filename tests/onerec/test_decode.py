"""Item decoding gives what a brute-force scoring of the whole catalogue gives, and what `generate` gives."""

import numpy as np
import pytest
import torch

from onerec.catalog import ItemIndex
from onerec.decode import batches_by_length, decode_items


@pytest.fixture(scope="module")
def index(toy_spec):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (30, 3)).astype(np.int32)
    return ItemIndex(np.arange(30), codes, toy_spec)


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [11, 12, 13, 14]]


def brute_force(model, prompt, index, spec):
    """Score every SID of the catalogue by one full forward pass each."""
    scored = []
    for sid in index.sids:
        tokens = spec.token_ids(sid).tolist()
        ids = torch.tensor([[*prompt, spec.begin_id, *tokens]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0].log_softmax(-1)
        steps = range(len(prompt), len(prompt) + spec.n_layers)
        scored.append(
            (
                sum(logprobs[t, token].item() for t, token in zip(steps, tokens, strict=True)),
                tuple(sid.tolist()),
            )
        )
    return sorted(scored, key=lambda pair: (-pair[0], pair[1]))


def test_equals_brute_force_over_the_whole_catalogue(toy_model, toy_spec, index):
    decoded = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=len(index.sids))
    for prompt, hypotheses in zip(PROMPTS, decoded, strict=True):
        expected = brute_force(toy_model, prompt, index, toy_spec)
        assert [h.codes for h in hypotheses] == [sid for _, sid in expected]
        np.testing.assert_allclose([h.logprob for h in hypotheses], [s for s, _ in expected], atol=1e-4)


def test_equals_generate_with_a_prefix_constraint(toy_model, toy_spec, index):
    beams = 4
    prompt = [*PROMPTS[0], toy_spec.begin_id]
    existing = [toy_spec.token_ids(sid).tolist() for sid in index.sids]

    def allowed(_, ids):
        done = ids[len(prompt) :].tolist()
        return sorted({sid[len(done)] for sid in existing if sid[: len(done)] == done})

    out = toy_model.generate(
        torch.tensor([prompt]), max_new_tokens=3, num_beams=beams, num_return_sequences=beams, do_sample=False,
        prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True, length_penalty=0.0,
        eos_token_id=63, pad_token_id=0,
    )  # fmt: skip
    expected = out.sequences[:, len(prompt) :].tolist()
    [hypotheses] = decode_items(toy_model, PROMPTS[:1], index, toy_spec, num_beams=beams)
    assert [toy_spec.token_ids(h.codes).tolist() for h in hypotheses] == expected
    np.testing.assert_allclose([h.logprob for h in hypotheses], out.sequences_scores.tolist(), atol=1e-4)


def test_batching_does_not_change_the_result(toy_model, toy_spec, index):
    together = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=5)
    alone = [decode_items(toy_model, [prompt], index, toy_spec, num_beams=5)[0] for prompt in PROMPTS]
    tight = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=5, token_budget=1)
    for a, b, c in zip(together, alone, tight, strict=True):
        assert [h.codes for h in a] == [h.codes for h in b] == [h.codes for h in c]


def test_only_existing_sids_come_out_and_excluded_ones_do_not(toy_model, toy_spec, index):
    [all_items] = decode_items(toy_model, PROMPTS[:1], index, toy_spec, num_beams=64)
    banned = {h.codes for h in all_items[:7]}
    [rest] = decode_items(toy_model, PROMPTS[:1], index, toy_spec, num_beams=64, exclude=[banned])
    assert len(all_items) == len(index.sids)
    assert all(h.codes in index for h in all_items)
    assert [h.codes for h in rest] == [h.codes for h in all_items[7:]]


def test_another_codebook_is_refused(toy_model, toy_spec, index):
    from onerec.sid import SidSpec

    with pytest.raises(ValueError, match="codebooks"):
        decode_items(toy_model, PROMPTS, index, SidSpec((8, 4, 4), first_id=40))


def test_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [3, 50, 7, 7, 20, 1]
    batches = list(batches_by_length(lengths, 40))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 40 for b in batches)
