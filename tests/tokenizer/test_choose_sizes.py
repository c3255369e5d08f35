"""Codebook sizes are chosen by what collides on the embeddings at hand."""

import json

import numpy as np
import pytest

from onerec.errors import InputError
from onerec.parquet import embedding_table, write_table
from tests.arguments import as_flags
from tokenizer.choose_sizes import candidates, main


def choose(tmp_path, vectors, *more):
    write_table(tmp_path / "e.parquet", embedding_table(list(range(len(vectors))), vectors.astype(np.float32)))
    out = tmp_path / "sizes.json"
    main(as_flags(*more, data_path=tmp_path / "e.parquet", output_path=out, dim=vectors.shape[1]))
    return json.loads(out.read_text())


def test_candidates_have_room_double_and_never_exceed_the_items():
    assert list(candidates(100, 2)) == [32, 64] and list(candidates(100, 3)) == [8, 16, 32, 64]
    assert next(candidates(3686, 2)) == 128 and next(candidates(12_101, 2)) == 256
    assert list(candidates(10**9, 3))[-1] == 8192
    assert all(codes <= items for items in (2, 3, 5, 17) for codes in candidates(items, 2))


def test_the_smallest_size_is_taken_that_keeps_the_items_apart(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(200, 8))
    value = choose(tmp_path, vectors, "--max_collisions", "0.25")
    tried = value["tried"]
    assert [row["codebook_size"] for row in tried] == list(candidates(200, 2))[: len(tried)]
    assert (value["n_layers"], value["codebook_size"]) == (tried[-1]["n_layers"], tried[-1]["codebook_size"])
    assert tried[-1]["collision_rate"] <= 0.25 and all(row["collision_rate"] > 0.25 for row in tried[:-1])
    assert tried[0]["collision_rate"] == 1 - tried[0]["distinct_sids"] / 200
    looser = choose(tmp_path, vectors, "--max_collisions", "0.9")
    assert len(looser["tried"]) == 1
    assert "sizes: 2 x 32 codes (" in capsys.readouterr().out


def test_items_that_nothing_tells_apart_are_warned_of(tmp_path, capsys):
    vectors = np.repeat(np.random.default_rng(0).normal(size=(4, 3)), 5, axis=0)
    value = choose(tmp_path, vectors, "--balanced", "--n_layers", "3")
    tried = [row["codebook_size"] for row in value["tried"]]
    assert tried == [8, 16], "twice the codes, and as many collisions"
    assert (value["n_layers"], value["codebook_size"]) == (3, 8)
    assert "warning: no size keeps more than 20.0% of the items apart; " in capsys.readouterr().err
    assert value["manifest"]["warnings"]


def test_rows_that_are_no_embeddings_fail(tmp_path):
    vectors = np.zeros((10, 4))
    vectors[:5] = 1
    with pytest.raises(InputError, match="5 of 10 rows are bad"):
        choose(tmp_path, vectors)
