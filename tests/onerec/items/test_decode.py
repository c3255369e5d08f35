"""Item decoding gives what a brute-force scoring of the whole catalogue gives, and what `generate` gives."""

import copy

import numpy as np
import pytest
import torch

from onerec.catalog import ItemIndex
from onerec.items import model as item_model
from onerec.items.item import Draws, Prior, batches_by_length, ranked_with_prior
from onerec.items.model import ItemModel
from onerec.items.search import find_items
from onerec.sid import SidSpec


@pytest.fixture(scope="module")
def index(toy_spec):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (30, 3)).astype(np.int32)
    return ItemIndex(np.arange(30), codes, toy_spec)


PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [11, 12, 13, 14]]


def decode_items(model, prompts, index, spec, num_beams=32, **options):
    """`find_items` behind the begin token, with a model of transformers."""
    return find_items(ItemModel.of(model, spec), [[*p, spec.begin_id] for p in prompts], index, num_beams, **options)


def brute_force(model, prompt, index, spec, level=False):
    """Score each SID of the catalogue by a full forward pass; ``level``: softmax over the layer's codes only."""
    scored = []
    for sid in index.sids:
        tokens = spec.token_ids(sid).tolist()
        ids = torch.tensor([[*prompt, spec.begin_id, *tokens]])
        with torch.inference_mode():
            logits = model(ids).logits[0].float()
        logprobs = logits.log_softmax(-1)
        if level:
            for layer, (first, last) in enumerate(spec.layer_ranges):
                row = logits[len(prompt) + layer, first : last + 1]
                logprobs[len(prompt) + layer, first : last + 1] = row.log_softmax(-1)
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
        np.testing.assert_allclose([h.score for h in hypotheses], [s for s, _ in expected], atol=1e-4)


def test_level_scores_are_those_of_a_softmax_over_the_levels_codes(toy_model, toy_spec, index):
    decoded = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=len(index.sids), normalize="level")
    for prompt, hypotheses in zip(PROMPTS, decoded, strict=True):
        expected = brute_force(toy_model, prompt, index, toy_spec, level=True)
        assert [h.codes for h in hypotheses] == [sid for _, sid in expected]
        np.testing.assert_allclose([h.score for h in hypotheses], [s for s, _ in expected], atol=1e-4)
    with pytest.raises(ValueError, match="normalize"):
        decode_items(toy_model, PROMPTS, index, toy_spec, normalize="nothing")


def test_blocks_of_rows_and_vocabulary_change_nothing(toy_model, toy_spec, index, monkeypatch):
    whole = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=7)
    monkeypatch.setitem(item_model._BLOCKS, "cpu", (8, 8, 3, 1))
    blocks = decode_items(toy_model, PROMPTS, index, toy_spec, num_beams=7)
    for a, b in zip(whole, blocks, strict=True):
        assert [h.codes for h in a] == [h.codes for h in b]
        np.testing.assert_allclose([h.score for h in a], [h.score for h in b], atol=1e-5)


@pytest.mark.parametrize("scale", [0.1, 300.0])
def test_flat_and_extreme_logits_are_normalised(toy_model, toy_spec, index, scale):
    """A first shift that is hundreds off would overflow; the scores must still be those of the softmax."""
    model = copy.deepcopy(toy_model)
    model.lm_head.weight.data *= scale
    [hypotheses] = decode_items(model, PROMPTS[:1], index, toy_spec, num_beams=len(index.sids))
    expected = brute_force(model, PROMPTS[0], index, toy_spec)
    np.testing.assert_allclose([h.score for h in hypotheses], [s for s, _ in expected], rtol=1e-4)


def test_in_bfloat16_scores_are_as_near_the_truth_as_brute_force_in_bfloat16(toy_model, toy_spec, index):
    model = copy.deepcopy(toy_model).bfloat16()
    decoded = decode_items(model, PROMPTS, index, toy_spec, num_beams=len(index.sids))
    ours, brute = [], []
    for prompt, hypotheses in zip(PROMPTS, decoded, strict=True):
        truth = {sid: score for score, sid in brute_force(toy_model, prompt, index, toy_spec)}
        ours += [abs(h.score - truth[h.codes]) for h in hypotheses]
        brute += [abs(score - truth[sid]) for score, sid in brute_force(model, prompt, index, toy_spec)]
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
    assert len(ours) == len(brute) and np.mean(ours) < 1.3 * np.mean(brute)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_in_bfloat16_scores_are_those_of_the_unrounded_softmax(toy_model, toy_spec, device):
    """Logits near 20, where bfloat16's steps are 0.125: the numerator and the denominator of a score are both exact."""
    model = copy.deepcopy(toy_model).bfloat16().to(device)
    model.lm_head.weight.data *= 12
    beams = ItemModel.of(model, toy_spec)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)).bfloat16().to(device)
    truth = hidden.double() @ model.lm_head.weight.double().T
    assert truth.abs().max() > 16
    first, last = toy_spec.layer_ranges[1]
    codes = torch.arange(last - first + 1, device=device)
    with torch.inference_mode():
        for layer, rows in ((None, truth), (1, truth[:, first : last + 1])):
            found = beams.log_normalizer(hidden, layer)
            torch.testing.assert_close(found, rows.logsumexp(-1).float(), atol=1e-4, rtol=0)
        owner, code = torch.arange(5, device=device).repeat_interleave(len(codes)), codes.repeat(5)
        logits = beams.logits(hidden, first, last, owner, code)
    torch.testing.assert_close(logits, truth[:, first : last + 1].flatten().float(), atol=1e-4, rtol=0)


def test_equal_scores_come_by_sid_and_at_a_cut_the_smaller_stays(toy_model, toy_spec, index):
    model = copy.deepcopy(toy_model)
    model.lm_head.weight.data.zero_()
    for beams in (len(index.sids), 3):
        [hypotheses] = decode_items(model, PROMPTS[:1], index, toy_spec, num_beams=beams)
        assert [h.codes for h in hypotheses] == [tuple(sid) for sid in index.sids.tolist()][:beams]
        np.testing.assert_allclose([h.score for h in hypotheses], -3 * np.log(64), rtol=1e-5)


def test_a_hypothesis_names_its_items_most_popular_first(toy_model, toy_spec):
    codes = np.array([[0, 1, 2], [0, 1, 2], [3, 3, 3]], np.int32)
    shared = ItemIndex(np.array([7, 8, 9]), codes, toy_spec, popularity={8: 5})
    [hypotheses] = decode_items(toy_model, PROMPTS[:1], shared, toy_spec)
    assert {h.codes: h.pids for h in hypotheses} == {(0, 1, 2): (8, 7), (3, 3, 3): (9,)}


def test_the_model_keeps_its_own_attention(toy_model, toy_spec, index):
    before = toy_model.config._attn_implementation
    decode_items(toy_model, PROMPTS, index, toy_spec)
    assert toy_model.config._attn_implementation == before


def test_equals_generate_with_a_prefix_constraint(toy_model, toy_spec, index):
    beams = 4
    prompt = [*PROMPTS[0], toy_spec.begin_id]
    existing = [toy_spec.token_ids(sid).tolist() for sid in index.sids]

    def allowed(_, ids):
        done = ids[len(prompt) :].tolist()
        return sorted({sid[len(done)] for sid in existing if sid[: len(done)] == done})

    out = toy_model.generate(
        torch.tensor([prompt]),
        max_new_tokens=3,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
        eos_token_id=63,
        pad_token_id=0,
    )
    expected = out.sequences[:, len(prompt) :].tolist()
    [hypotheses] = decode_items(toy_model, PROMPTS[:1], index, toy_spec, num_beams=beams)
    assert [toy_spec.token_ids(h.codes).tolist() for h in hypotheses] == expected
    np.testing.assert_allclose([h.score for h in hypotheses], out.sequences_scores.tolist(), atol=1e-4)


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


def test_no_beam_is_spent_on_a_prefix_whose_sids_are_all_excluded(toy_model, toy_spec, index):
    """Greedy search, everything below its first code excluded: the second best code must be taken instead."""
    [[best]] = decode_items(toy_model, PROMPTS[:1], index, toy_spec, num_beams=1)
    below = [tuple(sid) for sid in index.sids.tolist() if sid[0] == best.codes[0]]
    rest = [tuple(sid) for sid in index.sids.tolist() if sid[0] != best.codes[0]]
    smaller = ItemIndex(np.arange(len(rest)), np.array(rest, np.int32), toy_spec)
    [expected] = decode_items(toy_model, PROMPTS[:1], smaller, toy_spec, num_beams=1)
    [found, free] = decode_items(toy_model, [PROMPTS[0]] * 2, index, toy_spec, num_beams=1, exclude=[below, []])
    assert [h.codes for h in found] == [h.codes for h in expected]
    assert [h.codes for h in free] == [best.codes]
    everything = [tuple(sid) for sid in index.sids.tolist()]
    assert decode_items(toy_model, PROMPTS[:1], index, toy_spec, exclude=[everything]) == [[]]


def test_another_codebook_is_refused(toy_model, toy_spec, index):
    with pytest.raises(ValueError, match="codebooks"):
        decode_items(toy_model, PROMPTS, index, SidSpec((8, 4, 4), first_id=40))


def test_a_model_that_item_decoding_would_get_wrong_is_refused(toy_model, toy_spec, index):
    biased = copy.deepcopy(toy_model)
    biased.lm_head.bias = torch.nn.Parameter(torch.zeros(64))
    with pytest.raises(ValueError, match="bias"):
        decode_items(biased, PROMPTS, index, toy_spec)
    with pytest.raises(ValueError, match="vocabulary ends at 63"):
        decode_items(toy_model, PROMPTS, index, SidSpec((4, 4, 4), first_id=60))
    config, weights = toy_model.config.to_dict(), dict(toy_model.named_parameters())
    for windows in ({"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]}):
        with pytest.raises(ValueError, match="full attention"):
            ItemModel(config | windows, toy_spec, weights)


def test_a_prompt_that_leaves_no_room_for_its_item_is_refused(toy_model, toy_spec, index):
    room = toy_model.config.max_position_embeddings - toy_spec.n_layers - 1  # and the begin token
    assert len(decode_items(toy_model, [[1] * room], index, toy_spec, num_beams=2)[0]) == 2
    with pytest.raises(ValueError, match="takes 257 tokens with its item, and the context is 256"):
        decode_items(toy_model, [[1], [1] * (room + 1)], index, toy_spec)


def test_batches_keep_to_the_budget_and_lose_nothing():
    lengths = [3, 50, 7, 7, 20, 1]
    batches = list(batches_by_length(lengths, 40))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 40 for b in batches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_are_those_of_transformers(toy_model, toy_spec, dtype):
    """Prompts of several lengths in a batch, then a level of beams, against transformers on each whole sequence."""
    model = copy.deepcopy(toy_model).to(dtype)
    engine, rows = ItemModel.of(model, toy_spec), [[*p, toy_spec.begin_id] for p in PROMPTS]
    tokens = torch.tensor([[41, 43], [40, 42], [43, 40]])
    hidden = engine.prefill(rows)
    after = engine.step(0, torch.zeros_like(tokens), tokens)
    bound = 1e-5 if dtype == torch.float32 else 0.05
    for i, row in enumerate(rows):
        for beam, token in enumerate(tokens[i].tolist()):
            with torch.inference_mode():
                whole = model.model(torch.tensor([[*row, token]])).last_hidden_state[0]
            torch.testing.assert_close(hidden[i, 0], whole[-2], atol=bound, rtol=bound)
            torch.testing.assert_close(after[i, beam], whole[-1], atol=bound, rtol=bound)


def test_draws_follow_the_models_distribution_and_are_a_prompts_own(toy_model, toy_spec, index):
    n = 4000
    rows = [[*p, toy_spec.begin_id] for p in PROMPTS]
    engine = ItemModel.of(toy_model, toy_spec)
    drawn = find_items(engine, rows, index, n, 1 << 30, draws=Draws([1, 2, 3]))
    truth = {item.codes: item.score for item in find_items(engine, rows[:1], index, len(index.sids))[0]}
    # Of the catalogue's tree alone: each level is drawn among the children of its node.
    for depth in (1, 3):
        seen = {}
        for item in drawn[0]:
            seen[item.codes[:depth]] = seen.get(item.codes[:depth], 0) + 1 / n
        expected = _chances(engine, rows[0], index, depth)
        assert seen.keys() <= expected.keys()
        assert max(abs(seen.get(codes, 0) - chance) for codes, chance in expected.items()) < 4 * (0.25 / n) ** 0.5
    for item in drawn[0][:50]:
        assert item.score == pytest.approx(truth[item.codes], abs=1e-4) == pytest.approx(sum(item.logprobs), abs=1e-4)
    alone = find_items(engine, rows[1:2], index, n, draws=Draws([2]))
    assert [item.codes for item in alone[0]] == [item.codes for item in drawn[1]]
    cold = find_items(engine, rows[:1], index, 20, draws=Draws([5], temperature=1e-4))
    assert {item.codes for item in cold[0]} == {find_items(engine, rows[:1], index, 1)[0][0].codes}


def _chances(engine, row, index, depth):
    """Chance of every prefix of ``depth`` codes when each level is drawn among the children of its node."""
    items = find_items(engine, [row], index, len(index.sids))[0]
    chances, step = {(): 1.0}, {item.codes[:d]: item.logprobs[d - 1] for item in items for d in range(1, depth + 1)}
    for d in range(depth):
        new = {}
        for prefix, chance in chances.items():
            children = [codes for codes in step if len(codes) == d + 1 and codes[:d] == prefix]
            mass = sum(np.exp(step[codes]) for codes in children)
            new |= {codes: chance * np.exp(step[codes]) / mass for codes in children}
        chances = new
    return chances


def test_without_a_catalogue_any_tokens_are_found(toy_model, toy_spec):
    """Beside every sequence of three tokens among the four likeliest of each step, scored by whole forward passes."""
    engine, row = ItemModel.of(toy_model, toy_spec), [*PROMPTS[0], toy_spec.begin_id]
    found = find_items(engine, [row, [*PROMPTS[1], toy_spec.begin_id]], None, 4)[0]
    beams = [((), 0.0)]
    for _ in range(3):
        grown = []
        for tokens, score in beams:
            with torch.inference_mode():
                logprobs = toy_model(torch.tensor([[*row, *tokens]])).logits[0, -1].log_softmax(-1)
            grown += [((*tokens, token), score + value) for token, value in enumerate(logprobs.tolist())]
        beams = sorted(grown, key=lambda pair: (-pair[1], pair[0]))[:4]
    assert [item.token_ids for item in found] == [tokens for tokens, _ in beams]
    np.testing.assert_allclose([item.score for item in found], [score for _, score in beams], atol=1e-4)
    assert not found[0].codes and not found[0].pids


def test_weights_come_from_a_folder_a_model_or_a_stream(toy_model, toy_spec, index, tmp_path):
    toy_model.save_pretrained(tmp_path)
    row = [[*PROMPTS[0], toy_spec.begin_id]]

    def scores(engine):
        return {item.token_ids: item.score for item in find_items(engine, row, index, 5)[0]}

    expected = pytest.approx(scores(ItemModel.of(toy_model, toy_spec)), abs=1e-5)
    opened = ItemModel.open(tmp_path, toy_spec, "cpu", torch.float32)
    assert scores(opened) == expected
    stream = {name: tensor * 1.5 for name, tensor in toy_model.named_parameters()}
    opened.load(iter(stream.items()))
    assert scores(opened) != expected
    opened.load(toy_model.named_parameters())
    assert scores(opened) == expected
    del stream["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(KeyError, match=r"layers\.1\.mlp\.up_proj"):
        opened.load(stream)
    with pytest.raises(ValueError, match="dense Qwen3, not llama"):
        ItemModel({**toy_model.config.to_dict(), "model_type": "llama"}, toy_spec, stream)


def test_a_prior_ranks_with_the_model_and_its_own_items_are_scored_exactly(toy_model, toy_spec, index):
    """As brute force over the catalogue does, among what the beams find and what the prior proposes."""
    rng, weight, width = np.random.default_rng(0), 0.7, 3
    engine, rows = ItemModel.of(toy_model, toy_spec), [[*p, toy_spec.begin_id] for p in PROMPTS]
    known = [np.sort(rng.choice(len(index.sids), n, replace=False)) for n in (6, 1, 0)]
    priors = [Prior(some, rng.normal(size=len(some)).astype(np.float32), -5.0) for some in known]
    alone = find_items(engine, rows, index, width)
    assert find_items(engine, rows, index, width, also=[prior.rows[:0] for prior in priors]) == alone
    pools = find_items(engine, rows, index, width, also=[prior.best(4) for prior in priors])
    for prompt, prior, items, beams in zip(PROMPTS, priors, pools, alone, strict=True):
        truth = {codes: score for score, codes in brute_force(toy_model, prompt, index, toy_spec)}
        liked = sorted(zip(-prior.logs, prior.rows.tolist(), strict=True))[:4]
        pool = {item.codes for item in beams} | {tuple(index.sids[row].tolist()) for _, row in liked}
        assert {item.codes for item in items} == pool
        logs = prior.of(index.rows_of(np.array([item.codes for item in items])))
        found = ranked_with_prior(items, logs, weight, width)
        by_hand = dict(zip(prior.rows.tolist(), prior.logs.tolist(), strict=True))
        total = {codes: truth[codes] + weight * by_hand.get(index.row_of(codes), -5.0) for codes in pool}
        expected = sorted(pool, key=lambda codes: (-total[codes], codes))[:width]
        assert [item.codes for item in found] == expected
        np.testing.assert_allclose([item.score for item in found], [total[codes] for codes in expected], atol=1e-4)
    every = [np.arange(len(index.sids))] * len(rows)
    for prompt, items in zip(PROMPTS, find_items(engine, rows, index, 1, also=every), strict=True):
        assert [item.codes for item in items] == [sid for _, sid in brute_force(toy_model, prompt, index, toy_spec)]
    banned = [{item.codes for item in items[:1]} for items in pools]
    left = find_items(engine, rows, index, width, exclude=banned, also=[prior.best(4) for prior in priors])
    assert not any(item.codes in out for items, out in zip(left, banned, strict=True) for item in items)
    with pytest.raises(ValueError, match="without a catalogue"):
        find_items(engine, rows, None, width, also=every)
