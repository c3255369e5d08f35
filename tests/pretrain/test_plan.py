"""The estimates agree with what can be counted: parameters, optimizer numbers, operations."""

import dataclasses
import re
from pathlib import Path

import pytest

from onerec.errors import InputError
from onerec.qwen3 import QWEN3, table_weights, weights
from pretrain.model import PackedLM, load_lm
from pretrain.plan import held_bytes, main, memory_gib


@pytest.mark.parametrize("name", ["base", "untied"])
def test_parameters_are_counted(world, name):
    lm = load_lm(world / name)
    norms = sum(p.numel() for p in lm.parameters() if p.ndim == 1)
    assert weights(lm.config) + norms == PackedLM(lm).lm.num_parameters()


def test_published_sizes():
    # Qwen3's own tables: 1.7 B with 1.4 B outside the embedding, 8.2 B with 6.95 B outside.
    for name, total, inner in (("1.7B", 1.72e9, 1.41e9), ("8B", 8.19e9, 6.95e9)):
        config = dataclasses.replace(QWEN3[name], vocab_size=151_936)
        assert weights(config) == pytest.approx(total, rel=0.01)
        assert weights(config) - table_weights(config) == pytest.approx(inner, rel=0.01)


def test_memory_follows_what_is_trained_and_how_long_rows_are():
    config = QWEN3["1.7B"]
    full, frozen = (memory_gib(config, 8192, 4096, kind, True) for kind in (False, True))
    assert full["optimizer"] == pytest.approx(12 * weights(config) / 2**30)
    assert frozen["optimizer"] < 0.05 * full["optimizer"] and frozen["weights"] == full["weights"]
    longer = memory_gib(config, 32768, 4096, False, True)
    assert longer["activations"] == pytest.approx(4 * full["activations"])
    assert memory_gib(config, 8192, 4096, False, False)["activations"] > 5 * full["activations"]


def test_shards_hold_their_part():
    """By hand: ZeRO-2 on 8 GPUs holds 2 bytes each of the weights and 14 / 8 of the rest."""
    config = QWEN3["1.7B"]
    count = weights(config)
    assert held_bytes(config, count, "zero2", 8) == (2 * count, 14 * count / 8)
    assert held_bytes(config, count, "zero1", 8) == (2 * count, 2 * count + 12 * count / 8)
    whole = [sum(held_bytes(config, count, shards, 64)) for shards in ("none", "zero1", "zero2", "zero3")]
    assert whole == sorted(whole, reverse=True) and whole[0] == 18 * count
    assert sum(held_bytes(config, count, "fsdp2", 64)) < 0.1 * whole[0]


PLANS = Path(__file__).resolve().parents[2] / "pretrain/examples/PLAN.md"


def test_the_tables_beside_the_examples_are_what_the_script_prints(capsys):
    text = PLANS.read_text(encoding="utf-8")
    commands = re.findall(r"^python plan.py (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        main(command.split())
        assert capsys.readouterr().out in text, f"python plan.py {command}"


def test_the_table_says_that_it_is_estimated(world, capsys):
    main(["--model_dir", str(world / "base_itemic"), "--gpus", "1", "8", "--max_length", "1024"])
    lines = capsys.readouterr().out.splitlines()
    assert "every number is estimated" in lines[0] and len(lines) == 5
    one, eight = ([float(cell.replace(",", "")) for cell in line.split("|")[7:9]] for line in lines[3:])
    assert eight[0] == pytest.approx(8 * one[0], rel=1e-3)
    for flags, says in (
        (["--device", "abacus"], "is not a GPU that is known"),
        (["--mfu", "2"], "--mfu: is 2; give a number above 0 to 1"),
    ):
        with pytest.raises(InputError, match=says):
            main(flags)
