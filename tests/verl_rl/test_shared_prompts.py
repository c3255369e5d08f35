"""Rows that share their prompts: as trees they have the log-probabilities, entropies and gradients of single rows."""

from __future__ import annotations

import pytest
import torch

from onerec.verl.rows import spread
from verl_rl.shared_prompts import build, gather, keep_groups, split_groups


@pytest.fixture(scope="module")
def model():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attn_implementation="sdpa",
    )
    return Qwen3ForCausalLM(config).eval()


def rows():
    """Two prompts of different length; answers that share nothing, a beginning, or everything."""
    a, b = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([1, 2, 9])
    answers = [(a, [7, 8, 9]), (b, [7, 8]), (a, [7, 8, 10, 11]), (a, [12]), (b, [7, 8]), (b, [])]
    return [prompt for prompt, _ in answers], [torch.tensor(answer, dtype=torch.int64) for _, answer in answers]


def one_by_one(model, prompts, responses):
    """(log-probabilities, entropies) of all response tokens, each row computed alone."""
    log_probs, entropies = [], []
    for prompt, response in zip(prompts, responses, strict=True):
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0].log_softmax(-1)
        logits = logits[len(prompt) - 1 : len(prompt) - 1 + len(response)]
        log_probs.append(logits.gather(1, response[:, None])[:, 0])
        entropies.append(-(logits.exp() * logits).sum(-1))
    return torch.cat(log_probs), torch.cat(entropies)


def as_trees(model, prompts, responses):
    trees = build(prompts, responses, pad_id=0)
    output = model(
        input_ids=trees.input_ids,
        position_ids=trees.position_ids,
        attention_mask=trees.mask,
        logits_to_keep=trees.keep,
        use_cache=False,
    )
    return gather(output.logits, trees, entropy=True)


def test_trees_give_what_rows_give(model):
    prompts, responses = rows()
    expected, found = one_by_one(model, prompts, responses), as_trees(model, prompts, responses)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_gradients_are_the_same(model):
    prompts, responses = rows()
    weights = torch.linspace(-1, 1, sum(len(response) for response in responses))
    gradients = []
    for way in (one_by_one, as_trees):
        model.zero_grad()
        (way(model, prompts, responses)[0] * weights).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-3)


def test_a_prefix_is_computed_once():
    prompts, responses = rows()
    trees = build(prompts, responses, pad_id=0)
    # Prompts of 5 and 3; the first has 7 8 9 | 10 11 | 12 behind it, the second 7 8.
    assert tuple(trees.input_ids.shape) == (2, 5 + 6) and trees.keep == 7
    assert trees.input_ids[0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert trees.position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 8, 5]
    assert trees.input_ids[1].tolist() == [0, 0, 1, 2, 9, 7, 8, 0, 0, 0, 0]
    assert trees.mask[0, 0, 8].tolist() == [True] * 7 + [False, True, False, False]


def test_values_stand_one_before_their_token():
    values = torch.tensor([1.0, 2.0, 3.0])
    assert spread(values, torch.tensor([2, 1]), torch.tensor([2, 1])).tolist() == [0, 1, 2, 0, 3, 0]
    assert spread(values[:1], torch.tensor([2, 3]), torch.tensor([1, 0])).tolist() == [0, 1, 0, 0, 0, 0]


def deal(lengths, k_partitions, equal_size):
    """A stand-in for verl's partition: every k-th group to a rank."""
    assert equal_size
    return [list(range(rank, len(lengths), k_partitions)) for rank in range(k_partitions)]


def test_groups_stand_together_on_one_rank():
    groups, lengths = list("acbbacdd"), [9, 4, 7, 7, 9, 4, 1, 1]
    assert keep_groups(groups, lengths, 1, deal, by_length=False) == [0, 4, 1, 5, 2, 3, 6, 7]
    assert keep_groups(groups, lengths, 1, deal, by_length=True) == [6, 7, 1, 5, 2, 3, 0, 4]
    assert keep_groups(groups, lengths, 2, deal, by_length=False) == [0, 4, 2, 3, 1, 5, 6, 7]
    assert keep_groups(groups, lengths, 3, deal, by_length=False) is None
    assert keep_groups([*groups, "e"], [*lengths, 1], 1, deal, by_length=False) is None


def test_micro_batches_are_whole_groups_within_the_limit():
    # Trees of 2 + 2, 3 + 3, 2 + 2, 5 + 3, 2 + 2 and 2 + 4 columns; six of them at once are 6 x (5 + 4) wide.
    groups = [
        (2, [[7], [8]]),
        (3, [[7, 8], [7, 9]]),
        (2, [[7], [8]]),
        (5, [[7, 8], [9]]),
        (2, [[7], [8]]),
        (2, [[7, 8], [9, 8]]),
    ]
    prompts = [torch.full((length,), i) for i, (length, answers) in enumerate(groups) for _ in answers]
    responses = [torch.tensor(answer) for _, answers in groups for answer in answers]
    assert split_groups(prompts, responses, limit=54) == (6, 1)
    assert split_groups(prompts, responses, limit=53) == (6, 2)
    # Any three in a row: the widest have 5 + 4 columns each.
    assert split_groups(prompts, responses, limit=27) == (6, 2)
    assert split_groups(prompts, responses, limit=26) == (6, 3)
    # One group is never split here: where it is too wide, verl deals out the rows.
    assert split_groups(prompts, responses, limit=8) == (6, 6)
    assert split_groups(prompts, responses, limit=7) == (0, 0)
    assert split_groups(prompts[1:], responses[1:], limit=100) == (0, 0)
    assert split_groups(prompts[::2], responses[::2], limit=100) == (0, 0)
