"""Item text to embeddings: near texts come near, an HF encoder is pooled as it should be, bad rows are counted."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onerec.errors import InputError
from onerec.parquet import write_table
from tokenizer.embed_items import main

CATS = [f"可爱的猫咪视频第{i}集" for i in "一二三四五"]
BALLS = [f"篮球比赛精彩集锦第{i}场" for i in "一二三四五"]


def run(folder, texts, *more, **columns):
    write_table(
        folder / "in.parquet",
        pa.table({"pid": list(range(len(texts))), "caption": pa.array(texts, pa.string()), **columns}),
    )
    main(["--input", str(folder / "in.parquet"), "--output_path", str(folder / "out.parquet"), *more])
    return np.array(pq.read_table(folder / "out.parquet")["embedding"].to_pylist(), np.float32)


def test_texts_of_one_kind_come_near_each_other(tmp_path):
    vectors = run(tmp_path, CATS + BALLS, "--dim", "4")
    similar = vectors @ vectors.T
    assert similar[:5, :5].min() > similar[:5, 5:].max()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    run(tmp_path, CATS + BALLS, "--dim", "4")
    first = (tmp_path / "out.parquet").read_bytes()
    run(tmp_path, CATS + BALLS, "--dim", "4")
    assert (tmp_path / "out.parquet").read_bytes() == first


def test_a_template_joins_columns(tmp_path):
    vectors = run(
        tmp_path,
        ["a", "a", "a"],
        "--template",
        "{genre} {caption}",
        "--dim",
        "2",
        genre=["war", "war", "love"],
    )
    assert np.allclose(vectors[0], vectors[1]) and not np.allclose(vectors[0], vectors[2])


def test_rows_without_text_are_counted(tmp_path, capsys):
    run(tmp_path, [*CATS, None, " "], "--dim", "2", "--max_bad_ratio", "0.5")
    assert "dropped 2 (text is empty)" in capsys.readouterr().out
    with pytest.raises(InputError, match="2 of 7 rows are bad"):
        run(tmp_path, [*CATS, None, " "], "--dim", "2")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random Qwen3 encoder in a local folder, and its parts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3Model

    folder = tmp_path_factory.mktemp("encoder")
    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|endoftext|>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    model = Qwen3Model(config).eval()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder, tokenizer, model


def test_an_hf_encoder_gives_the_last_tokens_state_at_any_batch_size(tmp_path, encoder):
    folder, tokenizer, model = encoder
    texts = ["short", "a much longer text", "中文"]
    vectors = run(tmp_path, texts, "--encoder", str(folder), "--instruction", "Q: ", "--max_batch_tokens", "40")
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            state = model(**tokenizer(f"Q: {text}", return_tensors="pt")).last_hidden_state[0, -1]
        assert np.allclose(vector, torch.nn.functional.normalize(state, dim=0), atol=1e-4)
    cut = run(tmp_path, texts, "--encoder", str(folder), "--instruction", "Q: ", "--dim", "8")
    assert np.allclose(cut, vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True), atol=1e-4)


def test_an_encoder_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(InputError, match="none/such: cannot be loaded"):
        run(tmp_path, CATS, "--encoder", "none/such")


def test_more_dimensions_than_the_encoder_has_are_refused(tmp_path, encoder):
    with pytest.raises(InputError, match="--dim: 64 is more than the encoder gives; at most 32"):
        run(tmp_path, CATS, "--encoder", str(encoder[0]), "--dim", "64")


def test_other_embeddings_alone_and_an_item_that_none_knows(tmp_path):
    known = {"pid": [0, 1], "embedding": [[3.0, 4.0], [0.0, 2.0]]}
    write_table(tmp_path / "a.parquet", pa.table(known))
    write_table(tmp_path / "b.parquet", pa.table({"pid": [1], "embedding": [[1.0]]}))
    concat = ["--concat", f"{tmp_path / 'a.parquet'}:2", str(tmp_path / "b.parquet")]
    vectors = run(tmp_path, CATS[:3], "--encoder", "none", *concat)
    second = np.array([0, 2, 1]) / np.sqrt(5)
    assert np.allclose(vectors[0], [0.6, 0.8, 0]) and np.allclose(vectors[1], second)
    middle = (np.array([1.2, 1.6, 0]) + np.array([0, 2, 1])) / 2
    assert np.allclose(vectors[2], middle / np.linalg.norm(middle))
    with pytest.raises(InputError, match="leaves nothing to embed"):
        run(tmp_path, CATS[:3], "--encoder", "none")
