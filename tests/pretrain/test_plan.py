"""The estimates agree with what can be counted: parameters, optimizer numbers, operations."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from onerec.errors import InputError
from onerec.qwen3 import QWEN3, Shape, table_weights, weights
from pretrain.extras import recompute
from pretrain.masters import halve
from pretrain.memory import (
    BF16,
    FP32,
    RECOMPUTE,
    USABLE,
    Numbers,
    activation_bytes,
    held_bytes,
    least_recomputation,
    memory_gib,
)
from pretrain.model import PackedLM, load_lm
from pretrain.plan import main


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
    full, frozen = (memory_gib(config, 8192, 4096, kind, "full") for kind in (False, True))
    assert full["optimizer"] == pytest.approx(12 * weights(config) / 2**30)
    assert frozen["optimizer"] < 0.05 * full["optimizer"] and frozen["weights"] == full["weights"]
    kept = [activation_bytes(config, 8192, what)[0] for what in RECOMPUTE]
    assert kept[0] > 1.2 * kept[1] > 5 * kept[2]
    assert activation_bytes(config, 32768, "none")[0] == pytest.approx(4 * kept[0])


def test_shards_hold_their_part():
    """By hand: ZeRO-2 on 8 GPUs holds 2 bytes each of the weights and 14 / 8 of the rest."""
    config = QWEN3["1.7B"]
    count = weights(config)
    assert held_bytes(config, count, "none", 1) == (2 * count, 12 * count, 2 * count)
    assert held_bytes(config, count, "none", 1, FP32) == (4 * count, 8 * count, 4 * count)
    assert held_bytes(config, count, "zero2", 8) == (2 * count, 12 * count / 8, 2 * count / 8)
    assert held_bytes(config, count, "zero1", 8) == (2 * count, 12 * count / 8, 2 * count)
    whole = [sum(held_bytes(config, count, shards, 64)) for shards in ("none", "zero1", "zero2", "zero3")]
    assert whole == sorted(whole, reverse=True) and whole[0] == 16 * count
    assert sum(held_bytes(config, count, "fsdp2", 64)) < 0.1 * whole[0]


def test_several_processes_keep_the_buckets_of_the_gradients_from_step_to_step():
    one, two = (memory_gib(QWEN3["1.7B"], 8192, 4096, False, "none", gpus=gpus) for gpus in (1, 2))
    assert (one["gradients"], two["gradients"]) == (0, pytest.approx(2 * weights(QWEN3["1.7B"]) / 2**30))


class Kernel(torch.autograd.Function):
    """What an attention kernel keeps: its inputs, its output and the logarithm of each row's sum."""

    @staticmethod
    def forward(ctx, query, key, value):
        out, sums = torch.empty_like(query), query.new_empty(query.shape[:2], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError


def counted(layers: int, what: str, half: bool, length: int = 64) -> int:
    """Bytes that autograd keeps of a Qwen3's layers, each tensor once, parameters left out."""
    from transformers import AttentionInterface, Qwen3Config, Qwen3ForCausalLM

    def attend(module, query, key, value, *args, **kwargs):
        return Kernel.apply(*(tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)))[None], None

    AttentionInterface.register("counted", attend)
    with torch.device("meta"):
        lm = Qwen3ForCausalLM(Qwen3Config(**dataclasses.asdict(SMALL) | {"num_hidden_layers": layers})).train()
    lm.set_attn_implementation("counted")
    if half:
        halve(lm)
    recompute(lm, what)
    held = {parameter.untyped_storage()._cdata for parameter in lm.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in held:
            kept[storage._cdata] = storage
        return tensor

    ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert lm.model(input_ids=ids, use_cache=False).last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


SMALL = Shape(48, 2, 6, 2, 112, True, head_dim=16, vocab_size=64)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("what", ["none", "attention", "attention:1"])
def test_activations_are_what_autograd_keeps(what, half, monkeypatch):
    monkeypatch.setattr(torch, "equal", lambda *_: True)  # no numbers on the meta device
    layer = counted(3, what, half) - counted(2, what, half)
    numbers = BF16 if half else FP32
    shapes = (dataclasses.replace(SMALL, num_hidden_layers=layers) for layers in (2, 3))
    two, three = (activation_bytes(shape, 64, what, numbers)[0] for shape in shapes)
    unseen = 64 * numbers.product * SMALL.hidden_size if what == "attention" else 0  # an input that is recomputed from
    assert layer + unseen == three - two


# What a GPU's default was until 2026-11-28: float32 weights, with a copy in bfloat16 where they are trained.
AUTOCAST = Numbers(stream=4, product=2, weight=4, master=0, gradient=4)


def reckoned(size: str, frozen: bool, recomputed: bool) -> float:
    """GiB of that default: logits then stood there twice in float32 and once in bfloat16."""
    config, length, chunk = QWEN3[size], 8192, 4096
    gib = memory_gib(config, length, chunk, frozen, "full" if recomputed else "none", numbers=AUTOCAST)
    count = table_weights(config) if frozen else weights(config)
    extra = 8 * chunk * config.vocab_size + 2 * count
    if not recomputed:  # keys and values for every head of queries
        shared = config.num_attention_heads - config.num_key_value_heads
        extra += 2 * 2 * length * config.num_hidden_layers * shared * config.head_dim
    return sum(gib.values()) + extra / 2**30


def test_the_reckoning_is_within_a_tenth_of_every_measured_row():
    text = (ROOT / "experiments/2026-11-27-h200/results.json").read_text()
    (table,) = (table for table in json.loads(text)["tables"] if table["name"] == "checkpointing")
    assert len(table["rows"]) == 6
    for row in table["rows"]:
        size, _, stage = row["Qwen3"].partition(", ")
        found = reckoned(size, bool(stage), row["gradient checkpointing"] == "with")
        assert found == pytest.approx(row["peak GiB"], rel=0.1), row


def test_as_little_is_recomputed_as_fits():
    what = (QWEN3["1.7B"], 8192, 4096, False)
    chosen = [least_recomputation(memory, *what) for memory in (79, 54, 48, 40, 20)]
    assert chosen == ["none", "attention:18", "attention", "full:16", "full"]
    for recompute_, memory in zip(chosen[:4], (79, 54, 48, 40), strict=True):
        assert sum(memory_gib(*what, recompute=recompute_).values()) <= USABLE * memory


def test_some_layers_recompute_what_the_others_keep():
    config = QWEN3["1.7B"]
    kept = [activation_bytes(config, 8192, what) for what in ("none", "attention:14", "attention", "full:14", "full")]
    assert kept[1][0] == pytest.approx((kept[0][0] + kept[2][0]) / 2) and kept[1][1] == kept[2][1]
    assert kept[3][0] == pytest.approx((kept[2][0] + kept[4][0]) / 2) and kept[3][1] == kept[4][1]


ROOT = Path(__file__).resolve().parents[2]
PLANS = ROOT / "pretrain/examples/PLAN.md"


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
    one, eight = ([float(cell.replace(",", "")) for cell in line.split("|")[8:10]] for line in lines[3:])
    assert eight[0] == pytest.approx(8 * one[0], rel=1e-3)
    for flags, says in (
        (["--device", "abacus"], "is not a GPU that is known"),
        (["--mfu", "2"], "--mfu: is 2; give a number above 0 to 1"),
    ):
        with pytest.raises(InputError, match=says):
            main(flags)
