"""Beam search and sampling over the SIDs that exist, against a model that is a table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onerec.catalog import ItemIndex
from onerec.items.search import ItemSearch
from onerec.sid import SidSpec

SPEC = SidSpec((3, 3, 3), first_id=5)
VOCAB = 5 + 9 + 2
rng = np.random.default_rng(0)
CODES = np.array([c for c in itertools.product(range(3), repeat=3) if sum(c) % 2], dtype=np.int32)
INDEX = ItemIndex(np.arange(len(CODES)), CODES, SPEC)


def model(prefix: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities of the next token, from the prefix alone."""
    logits = np.random.default_rng([7, *prefix]).normal(size=VOCAB) * 2
    return logits - np.log(np.exp(logits).sum())


def run(search: ItemSearch) -> list:
    while not search.done:
        answers = []
        for query in search.queries():
            ids = np.arange(VOCAB) if query.candidates is None else query.candidates
            logprobs = model(query.prefix)[ids]
            if query.candidates is None:
                best = np.argsort(-logprobs)[: query.top]
                ids, logprobs = ids[best], logprobs[best]
            shuffle = rng.permutation(len(ids))
            answers.append((ids[shuffle], logprobs[shuffle]))
        search.feed(answers)
    return search.found()


def score(tokens) -> float:
    return sum(model(tuple(tokens[:i]))[token] for i, token in enumerate(tokens))


def test_as_many_beams_as_items_rank_the_whole_catalogue():
    found = run(ItemSearch(SPEC, INDEX, len(CODES)))
    expected = sorted((tuple(SPEC.token_ids(c)) for c in CODES), key=lambda tokens: -score(tokens))
    assert [item.token_ids for item in found] == expected
    assert [item.score for item in found] == pytest.approx([score(tokens) for tokens in expected])
    assert found[0].score == pytest.approx(sum(found[0].logprobs))


def test_a_narrow_beam_gives_distinct_items_that_exist():
    found = run(ItemSearch(SPEC, INDEX, 4))
    assert len({item.token_ids for item in found}) == 4
    existing = {tuple(SPEC.token_ids(c)) for c in CODES}
    assert all(item.token_ids in existing for item in found)
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)


def test_more_beams_than_items_give_every_item_once():
    assert len(run(ItemSearch(SPEC, INDEX, 100))) == len(CODES)


def test_tokens_that_may_not_follow_are_left_out_of_an_answer():
    search = ItemSearch(SPEC, INDEX, 2)
    first = search.queries()[0]
    search.feed([(np.append(first.candidates, [0, 14]), np.append(np.full(len(first.candidates), -3.0), [0.0, 0.0]))])
    assert all(beam.prefix[0] in first.candidates for beam in search.queries())


def test_without_a_catalogue_any_tokens_come():
    found = run(ItemSearch(SPEC, None, 3))
    assert len(found) == 3 and found[0].token_ids[0] == int(np.argmax(model(())))


def test_sampling_follows_the_distribution_over_what_exists():
    draws = run(ItemSearch(SPEC, INDEX, 4000, np.random.default_rng(1)))
    first = np.array([item.token_ids[0] for item in draws])
    logprobs = model(())[[5, 6, 7]]
    chances = np.exp(logprobs) / np.exp(logprobs).sum()
    assert np.bincount(first - 5, minlength=3) / 4000 == pytest.approx(chances, abs=0.03)
    again = run(ItemSearch(SPEC, INDEX, 4000, np.random.default_rng(1)))
    assert [d.token_ids for d in draws] == [d.token_ids for d in again]


def test_draws_that_share_a_prefix_are_scored_once():
    search = ItemSearch(SPEC, INDEX, 50, np.random.default_rng(0))
    assert len(search.queries()) == 1


def test_a_catalogue_of_other_codebooks_is_refused():
    with pytest.raises(ValueError, match="the catalogue has codebooks"):
        ItemSearch(SidSpec((3, 3, 4), first_id=5), INDEX, 2)
