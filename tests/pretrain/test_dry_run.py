"""A dry run says what a training takes, from its own data, and trains and writes nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from onerec.errors import InputError
from pretrain.dataset import PackedDataset
from pretrain.dry_run import row_tokens
from pretrain.train import main
from tests.pretrain.test_dataset import load
from tests.pretrain.test_train import argv

EXAMPLES = Path(__file__).resolve().parents[2] / "pretrain/examples"


def test_it_says_steps_memory_and_hours_and_writes_nothing(world, tmp_path, capsys):
    flags = ["--num_training_steps", "-1", "--num_epochs", "4"]
    assert main([*argv(world, tmp_path / "out"), *flags, "--dry_run", "8"]) == 0
    said = capsys.readouterr().out
    rows = int(re.search(r"([\d,]+) packed rows", said)[1])
    assert rows % 8 == 0 and f"time: {rows // 8} steps" in said and "8 x H100, shards none" in said
    assert re.search(r"memory: \d+\.\d GiB a GPU of 79 \(weights", said) and not (tmp_path / "out").exists()
    sharded = ["--fsdp", str(EXAMPLES / "fsdp2.json"), "--freeze_llm", "--dry_run", "2"]
    assert main([*argv(world, tmp_path / "out"), *sharded]) == 0
    assert "shards fsdp2" in capsys.readouterr().out


def test_what_is_wrong_is_said_as_in_the_training(world, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.dry_run.MEMORY", 1e-5)
    with pytest.raises(InputError, match=r"does not fit a H100 of 0 GiB: .*weights"):
        main([*argv(world, tmp_path / "out"), "--dry_run", "1"])
    (tmp_path / "config.json").write_text(json.dumps({"sources": [str(tmp_path / "none")]}))
    with pytest.raises(InputError, match="none"):
        main([*argv(world, tmp_path / "out"), "--dry_run", "1", "--dataset_config", str(tmp_path / "config.json")])


def test_tokens_of_rows_are_counted_as_they_are_packed(world, config_file):
    config, samples, _ = load(world, config_file(cut_to_pad=True, max_length=128))
    dataset = PackedDataset(samples, config, 0, world_size=100)
    counted = [row_tokens(dataset, number) for number in range(len(dataset))]
    real = sum(row is not None for row in dataset.rows)
    assert counted[:real] == [len(dataset[number]["input_ids"]) for number in range(real)]
    assert 0 < real < 100 and not any(counted[real:])
