"""The tiny Qwen3 and its expansion: tokens, ids, rows, templates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from onerec.errors import InputError
from onerec.render import RENDERERS
from onerec.run import read_json, write_json
from onerec.sid import SidSpec
from pretrain import check_hf_model, expand_vocab, make_tiny_qwen3
from pretrain.expand_vocab import new_rows
from pretrain.model import load_lm

SMALL = [
    "--vocab_size",
    "300",
    "--hidden_size",
    "16",
    "--num_hidden_layers",
    "1",
    "--num_attention_heads",
    "2",
    "--num_key_value_heads",
    "1",
    "--head_dim",
    "8",
    "--intermediate_size",
    "16",
]


def tokenizer_of(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_the_same_corpus_and_seed_give_the_same_bytes(world, tmp_path):
    for name in ("a", "b"):
        make_tiny_qwen3.main(["--corpus", str(world / "general"), "--output_dir", str(tmp_path / name), *SMALL])
    for file in ("tokenizer.json", "model.safetensors", "config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_added_tokens_are_qwen3s_in_their_order(world):
    tokenizer = tokenizer_of(world / "base")
    added = sorted(tokenizer.added_tokens_decoder.items())
    texts = [token.content for _, token in added]
    assert texts[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] and texts[-2:] == [
        "<think>",
        "</think>",
    ]
    assert len(texts) == 26 and added[-1][0] == len(tokenizer) - 1
    assert [token.special for _, token in added] == [True] * 14 + [False] * 12


def test_text_of_any_kind_survives_and_digits_stand_alone(world):
    tokenizer = tokenizer_of(world / "base")
    text = "他说：12345 is\tnot 6,7!\r\n\r\n🦊 naïve  </think>"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert all(len(token) == 1 for token in tokenizer.tokenize("2025") if token.isdigit())
    assert len(tokenizer.tokenize("2025")) == 4


def test_generation_stops_at_the_end_of_a_turn(world):
    folder = world / "base"
    stops = read_json(folder / "generation_config.json")["eos_token_id"]
    assert tokenizer_of(folder).convert_tokens_to_ids("<|im_end|>") in stops


def test_an_expanded_base_model_stops_at_the_end_of_a_turn_too(world, tmp_path):
    source, output = tmp_path / "plain", tmp_path / "itemic"
    shutil.copytree(world / "base", source)
    tokenizer = tokenizer_of(source)
    end_of_text, end_of_turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    write_json(source / "generation_config.json", {"eos_token_id": end_of_text})
    config = read_json(source / "tokenizer_config.json")
    write_json(source / "tokenizer_config.json", config | {"eos_token": "<|endoftext|>"})
    assert tokenizer_of(source).eos_token_id == end_of_text
    argv = ["--hf_model_dir", str(source), "--output_model_dir", str(output), "--vocab_size_per_layer", "4"]
    expand_vocab.main(argv)
    stops = read_json(output / "generation_config.json")["eos_token_id"]
    assert stops == sorted([end_of_text, end_of_turn])


def test_a_corpus_without_text_is_refused(tmp_path):
    with pytest.raises(InputError, match="neither Parquet nor JSON"):
        (tmp_path / "empty").mkdir()
        make_tiny_qwen3.main(["--corpus", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out"), *SMALL])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["base", "untied"])
def test_expansion_keeps_old_rows_and_appends_tokens_in_order(world, name):
    old, new = load_lm(world / name), load_lm(world / f"{name}_itemic")
    spec = SidSpec.load(world / f"{name}_itemic")
    first = len(tokenizer_of(world / name))
    assert spec.id_range == (first, first + 13)
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, get)().weight, getattr(new, get)().weight
        assert torch.equal(before[:first], after[:first])
        assert len(after) % 256 == 0 and len(after) == new.config.vocab_size
    tied = new.get_input_embeddings().weight is new.get_output_embeddings().weight
    assert tied == (name == "base")
    tokenizer = tokenizer_of(world / f"{name}_itemic")
    for i, token in enumerate(spec.tokens):
        assert tokenizer(f"看{token}。", add_special_tokens=False).input_ids.count(first + i) == 1
    assert tokenizer.chat_template == tokenizer_of(world / name).chat_template


def test_old_text_gives_old_ids_after_expansion(world):
    text = RENDERERS["qwen3"].prompt_text([{"role": "user", "content": "3加4等于多少？"}])
    ids = [tokenizer_of(world / name)(text).input_ids for name in ("base", "base_itemic")]
    assert ids[0] == ids[1]


def test_a_checkpoint_is_not_expanded_twice(world, tmp_path):
    argv = [
        "--hf_model_dir",
        str(world / "base_itemic"),
        "--output_model_dir",
        str(tmp_path / "x"),
        "--sid_spec",
        str(world),
    ]
    with pytest.raises(InputError, match="expanded before"):
        expand_vocab.main(argv)
    assert not (tmp_path / "x").exists()


def test_new_rows_begin_at_the_old_rows_mean_and_scale():
    torch.manual_seed(0)
    old = torch.randn(500, 4) * torch.tensor([1.0, 2.0, 0.1, 5.0]) + torch.tensor([0.0, 3.0, -1.0, 10.0])
    new = new_rows(old, 4000, "mean", 0.02)
    torch.testing.assert_close(new.mean(0), old.mean(0), atol=0.3, rtol=0.05)
    torch.testing.assert_close(new.std(0), old.std(0), atol=0, rtol=0.1)
    assert new_rows(old, 4000, "normal", 0.02).std() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["base", "untied"])
def test_rows_from_the_codebook_keep_its_distances_and_the_old_rows_scale(world, tmp_path, name):
    torch.manual_seed(0)
    books = [torch.cat([torch.zeros(2, 64), 5 * torch.ones(2, 64)]) + 0.1 * torch.randn(4, 64) for _ in range(2)]
    torch.save({"state_dict": {f"centroids.{i}": book for i, book in enumerate(books)}}, tmp_path / "model.pt")
    argv = [
        "--hf_model_dir",
        str(world / name),
        "--output_model_dir",
        str(tmp_path / "m"),
        "--sid_spec",
        str(world),
    ]
    expand_vocab.main([*argv, "--init", "codebook", "--codebook", str(tmp_path)])
    old, new = load_lm(world / name), load_lm(tmp_path / "m")
    spec = SidSpec.load(tmp_path / "m")
    first = spec.id_range[0]
    for get in ("get_input_embeddings", "get_output_embeddings"):
        before, after = getattr(old, get)().weight.detach()[:first], getattr(new, get)().weight.detach()
        assert torch.equal(before, after[:first])
        for start, end in spec.layer_ranges[:2]:
            rows = after[start : end + 1]
            near, far = (rows[0] - rows[1]).norm(), (rows[0] - rows[2]).norm()
            assert near < 0.2 * far, "near centroids begin near"
            assert 0.5 < (rows - before.mean(0)).square().mean() / before.var(0).mean() < 2
        # The third layer has no codebook (one that resolves collisions): spread like the old rows.
        start, end = spec.layer_ranges[2]
        assert (after[start] - after[start + 1]).norm() > 0.2 * before.std(0).norm()


def test_a_codebook_that_does_not_fit_is_refused(world, tmp_path):
    torch.save({"centroids.0": torch.zeros(5, 8)}, tmp_path / "model.pt")
    argv = [
        "--hf_model_dir",
        str(world / "base"),
        "--output_model_dir",
        str(tmp_path / "x"),
        "--sid_spec",
        str(world),
    ]
    for flags, says in (
        (["--init", "codebook"], "--codebook: goes with --init codebook"),
        (["--codebook", str(tmp_path)], "--codebook: goes with --init codebook"),
        (["--init", "codebook", "--codebook", str(tmp_path)], r"has codebooks \(5,\)"),
        (["--init", "codebook", "--codebook", str(tmp_path / "none.pt")], "no such file"),
    ):
        with pytest.raises(InputError, match=says):
            expand_vocab.main([*argv, *flags])
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_model_is_refused(tmp_path):
    for folder, says in ((tmp_path / "absent", "no such folder"), (tmp_path, "no config.json")):
        with pytest.raises(InputError, match=says):
            expand_vocab.main(["--hf_model_dir", str(folder), "--output_model_dir", str(tmp_path / "x")])


def test_the_model_check_passes_a_good_model_and_names_what_is_wrong(world, tmp_path, caplog):
    assert check_hf_model.main(["--hf_model_dir", str(world / "base_itemic"), "--max_new_tokens", "4"]) == 0
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(world / "base_itemic", bad)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(world / "base" / file, bad / file)
    with pytest.raises(InputError, match="its tokenizer has <s_a_0> at None"):
        check_hf_model.main(["--hf_model_dir", str(bad), "--max_new_tokens", "4"])
    shutil.copytree(world / "base_itemic", bad, dirs_exist_ok=True)
    (bad / "chat_template.jinja").unlink()
    assert check_hf_model.main(["--hf_model_dir", str(bad), "--max_new_tokens", "4"]) == 1
    assert "there is no chat template" in caplog.text
