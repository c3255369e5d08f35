"""What things are made of is told by their bytes: every tensor of a model, no path, no time, no manifest."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from onerec.content import check_made_from, files_digest, files_digests, model_digest
from onerec.errors import InputError

ROWS = 120_000  # 32 wide in float32: 15 MB, four blocks


@pytest.fixture
def model(tmp_path):
    """A checkpoint folder whose embedding is larger than what one block holds."""
    folder = tmp_path / "model"
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((ROWS, 32), np.float32),
        "model.norm.weight": np.ones(32, np.float32),
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "tokenizer.json").write_text('{"model": {}}')
    (folder / "sid_spec.json").write_text('{"first_id": 60000}')
    (folder / "manifest.json").write_text('{"seconds": 1.5}')
    return folder


@pytest.mark.parametrize("row", [0, 1000, ROWS // 2, ROWS - 1])
def test_one_row_anywhere_makes_another_model(model, row):
    before = model_digest(model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][row, 7] += 1
    save_file(tensors, model / "model.safetensors")
    assert model_digest(model) != before


def test_the_same_bytes_are_the_same_model_wherever_whenever_and_however_cut(model, tmp_path):
    before = model_digest(model)
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(model, copy)
    os.utime(copy / "model.safetensors", (1, 1))
    (copy / "manifest.json").write_text('{"seconds": 2.5}')
    (copy / "README.md").write_text("a card")
    assert model_digest(copy) == before
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    for i, (name, tensor) in enumerate(reversed(tensors.items())):
        save_file({name: tensor}, copy / f"model-0000{i}-of-00002.safetensors", metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert model_digest(copy) == before


def test_what_a_model_is_beside_its_weights_counts(model):
    seen = {model_digest(model)}
    for name in ("config.json", "tokenizer.json", "sid_spec.json"):
        (model / name).write_text((model / name).read_text() + " ")
        seen.add(model_digest(model))
    tensors = load_file(model / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for changed in (
        {"model.embed_tokens.weight": embedding.view(np.int32)},  # the same bytes of another type
        {"model.embed_tokens.weight": embedding.reshape(-1, 64)},
        {"other": embedding},
    ):
        save_file(changed | {"model.norm.weight": tensors["model.norm.weight"]}, model / "model.safetensors")
        seen.add(model_digest(model))
    assert len(seen) == 7


@pytest.mark.parametrize("keep", [4, 100, 1 << 20])
def test_a_weight_file_that_is_cut_short_is_one_line(model, keep):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: is .*; write it again; it may be cut short"):
        model_digest(model)


def test_files_count_by_content_and_order_not_by_name(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "one"), ("d", "")):
        (tmp_path / name).write_text(text)
    one, two, again, empty = files_digests([tmp_path / name for name in "abcd"])
    assert one == again and len({one, two, empty}) == 3
    assert files_digest([tmp_path / "a", tmp_path / "b"]) == files_digest([tmp_path / "c", tmp_path / "b"])
    assert files_digest([tmp_path / "a", tmp_path / "b"]) != files_digest([tmp_path / "b", tmp_path / "a"])
    with pytest.raises(InputError, match="no such file"):
        files_digests([tmp_path / "e"])


def test_a_folder_of_results_stays_with_what_they_are_made_from(tmp_path):
    check_made_from(tmp_path / "out", {"base_model": "1", "data": "2"}, "another folder")
    check_made_from(tmp_path / "out", {"base_model": "1", "data": "2"}, "another folder")
    with pytest.raises(InputError, match="out: holds results that were made from another data; another folder"):
        check_made_from(tmp_path / "out", {"base_model": "1", "data": "3"}, "another folder")
    check_made_from(tmp_path / "out", {"base_model": "1", "data": "3"}, "another folder", anew=True)
    assert json.loads((tmp_path / "out/made_from.json").read_text())["data"] == "3"
