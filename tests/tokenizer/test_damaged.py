"""Item tokenizers, encoders and embeddings that are damaged or foreign: one line, nothing run, nothing left behind."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.run import Manifest
from onerec.sid import SidSpec
from tests.model_folders import tiny_model
from tokenizer.embed_items import main as embed
from tokenizer.embeddings import iter_embeddings
from tokenizer.quantizer import load_quantizer

BOOK = torch.ones(4, 8)


class Evil:
    """A pickle of it makes the file ``canary`` where it is loaded as a pickle."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


MODELS = {
    "centroids that are no numbers": ({"centroids.0": BOOK * np.nan}, r"centroids\.0 holds values that are no numbers"),
    "endless centroids": (
        {"state_dict": {"centroids.0": BOOK * np.inf}},
        r"centroids\.0 holds values that are no numbers",
    ),
    "prices that are no numbers": ({"centroids.0": BOOK, "prices.0": torch.full((4,), np.nan)}, r"prices\.0 holds"),
    "a list": ([BOOK], "cannot be loaded"),
    "a tensor": (BOOK, "cannot be loaded"),
    "nothing": (None, "cannot be loaded"),
    "a state that is none": ({"kind": "res_kmeans", "state_dict": None}, "cannot be loaded"),
    "centroids as lists": ({"centroids.0": [[1.0]]}, "cannot be loaded"),
    "a kind that is a list": ({"kind": ["res_kmeans"], "centroids.0": BOOK}, "cannot be loaded"),
    "a network without its sizes": (
        {"kind": "rq_vae", "state_dict": {"mean": BOOK[0], "codebooks.0": BOOK}},
        "cannot be loaded",
    ),
    "a product without its mean": (
        {"kind": "pq", "state_dict": {"centroids": BOOK}, "config": {"dim": 8}},
        "cannot be loaded",
    ),
    "a specification that is a list": ({"centroids.0": BOOK, "sid_spec": [4]}, "cannot be loaded"),
    "other sizes": ({"state_dict": {"centroids.0": BOOK}, "sid_spec": {"codebook_sizes": [5]}}, "of other sizes"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_tokenizer_that_is_none_is_one_line(tmp_path, name):
    value, match = MODELS[name]
    torch.save(value, tmp_path / "model.pt")
    with pytest.raises(InputError, match=match) as error:
        load_quantizer(tmp_path)
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path / "model.pt"))


def test_a_tokenizer_that_is_cut_or_a_foreign_pickle_is_one_line(tmp_path):
    path, evil = tmp_path / "model.pt", {"kind": "res_kmeans", "state_dict": Evil(tmp_path / "CANARY")}
    torch.save({"centroids.0": BOOK}, path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"text", pickle.dumps(evil)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be loaded"):
            load_quantizer(path)
    torch.save(evil, path)
    with pytest.raises(InputError, match="a pickle of something else than tensors"):
        load_quantizer(path)
    assert not (tmp_path / "CANARY").exists()


@pytest.fixture
def texts(tmp_path) -> list[str]:
    captions = ["a b", "b c", "c d", "d a"]
    write_table(tmp_path / "in.parquet", pa.table({"pid": list(range(4)), "caption": captions}))
    return ["--input", str(tmp_path / "in.parquet"), "--output_path", str(tmp_path / "out/e.parquet"), "--dim", "2"]


@pytest.mark.parametrize(
    ("embeddings", "weight", "match"),
    [
        ([[1.0, 2.0], [1.0], [1.0, 0.0], [1.0, 1.0]], "", "embedding has another dimension"),
        ([[1.0, np.nan]] * 4, "", "embedding is not finite"),
        ([[1.0, 1e30]] * 4, "", "embedding is not finite or too large"),
        ([[1.0, 2.0], None, [1.0, 0.0], [1.0, 1.0]], "", "embedding is null"),
        ([[]] * 4, "", "has no embedding"),
        ([[1.0, 2.0]] * 4, ":nan", "has the weight nan"),
        ([[1.0, 2.0]] * 4, ":inf", "has the weight inf"),
        ([[1.0, 2.0]] * 4, ":0", "has the weight 0"),
        ([[1.0, 2.0]] * 4, ":-1", "has the weight -1"),
        ([[1.0, 2.0]] * 4, ":x", "has the weight x"),
    ],
)
def test_embeddings_that_cannot_stand_beside_the_texts_are_one_line(tmp_path, texts, embeddings, weight, match):
    table = pa.table({"pid": list(range(4)), "embedding": pa.array(embeddings, pa.list_(pa.float64()))})
    write_table(tmp_path / "co.parquet", table)
    with pytest.raises(InputError, match=match):
        embed([*texts, "--concat", f"{tmp_path / 'co.parquet'}{weight}"])
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_mistyped_encoder_leaves_nothing_in_the_way_of_the_right_one(tmp_path, texts):
    tiny_model(tmp_path / "encoder", [*"abcd", "<|im_end|>"], SidSpec((2,), first_id=5))
    tokenizer = '{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "a"}'
    (tmp_path / "encoder/tokenizer_config.json").write_text(tokenizer)
    for wrong in (tmp_path / "typo", tmp_path):
        with pytest.raises(InputError):
            embed([*texts, "--encoder", str(wrong)])
        assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    embed([*texts, "--encoder", str(tmp_path / "encoder")])
    assert (tmp_path / "out/e.parquet").is_file()


def test_an_embedding_whose_square_overflows_is_dropped_and_counted(tmp_path):
    vectors = np.ones((4, 3), np.float32)
    vectors[1], vectors[2] = 1e20, 1e14
    write_table(tmp_path / "e.parquet", pa.table({"pid": list(range(4)), "embedding": list(vectors)}))
    manifest = Manifest("test", {})
    (pids, kept), *_ = iter_embeddings(tmp_path / "e.parquet", 3, manifest)
    assert pids.tolist() == [0, 2, 3] and np.isfinite((kept**2).sum())
    assert dict(manifest.dropped) == {"embedding is not finite or too large": 1}
