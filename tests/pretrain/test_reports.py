"""What a run reports: losses by source, validation, operations and MFU, and what it says when memory is full."""

import json

import pytest
import torch

from onerec.errors import InputError
from pretrain.dataset import collate
from pretrain.flops import layer_weights, peak_tflops, step_flops
from pretrain.model import load_lm
from pretrain.reports import LossSums, loss_that_did_not_fall
from pretrain.train import main
from pretrain.trainer import LOG, VALIDATION_LOG, PackedTrainer
from tests.pretrain.test_train import argv


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_are_those_of_their_tokens_and_sources():
    labels = torch.tensor([[-100, 5, 20, 21, -100, 6]])
    inputs = {"labels": labels, "input_ids": labels}
    outputs = {"losses": torch.tensor([1.0, 2.0, 4.0, 8.0]), "targets": torch.tensor([5, 20, 21, 6])}
    sums = LossSums(["a", "b", "c"], (20, 29))
    sums.add(outputs, inputs, torch.tensor([[0, 0, 0, 1, 1, 1]]))
    found = sums.report()
    assert found["loss"] == 15 / 4 and found["itemic_loss"] == 3 and found["text_loss"] == 4.5
    assert found["loss_by_source"] == {"a": 1.5, "b": 6.0}, "a source without a learnt token is not named"
    assert (found["itemic_tokens"], found["text_tokens"], found["all_tokens"]) == (2, 2, 6)
    sums.clear()
    assert sums.report()["loss_by_source"] == {} and sums.report()["itemic_loss"] is None


def test_a_run_reports_every_source_and_validates_without_learning_from_it(world, tmp_path):
    main(argv(world, tmp_path / "plain"))
    held_out = ["--eval_sources", str(world / "rec")]
    main(argv(world, tmp_path / "checked", *held_out))
    train = lines(tmp_path / "checked" / LOG)
    for line in train:
        assert set(line["loss_by_source"]) <= {"arithmetic", "facts", "video_rec"} and len(line["loss_by_source"]) > 1
    # Validation changes nothing: neither weights nor what is logged of training.
    plain = lines(tmp_path / "plain" / LOG)
    assert [line["loss"] for line in train] == [line["loss"] for line in plain]
    assert (tmp_path / "plain/hf/model.safetensors").read_bytes() == (
        tmp_path / "checked/hf/model.safetensors"
    ).read_bytes()
    validation = lines(tmp_path / "checked" / VALIDATION_LOG)
    assert [line["step"] for line in validation] == [3, 6]
    assert all(set(line["loss_by_source"]) == {"video_rec"} for line in validation)
    assert validation[-1]["loss"] < validation[0]["loss"], "the same kind of data is trained on"
    assert all(line["loss"] == pytest.approx(line["loss_by_source"]["video_rec"]) for line in validation)


def test_a_validation_is_the_loss_of_the_saved_model(world, tmp_path):
    from pretrain.model import PackedLM

    main(argv(world, tmp_path / "out", "--eval_sources", str(world / "rec")))
    seen = {}
    original = PackedTrainer.validate

    def spy(self):
        seen["rows"] = [self.validation[i] for i in range(len(self.validation))]
        return original(self)

    PackedTrainer.validate = spy
    try:
        main(argv(world, tmp_path / "again", "--eval_sources", str(world / "rec")))
    finally:
        PackedTrainer.validate = original
    model = PackedLM(load_lm(tmp_path / "out" / "hf")).eval()
    losses = []
    with torch.no_grad():
        for row in seen["rows"]:
            inputs = collate([row])
            inputs.pop("source")
            losses.append(model(**inputs)["losses"])
    last = lines(tmp_path / "out" / VALIDATION_LOG)[-1]
    assert last["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-3)


def test_operations_are_counted_as_torch_counts_them(world):
    """Against torch's counter on one sample; it counts attention without its causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    lm = load_lm(world / "base")
    lm.set_attn_implementation("eager")  # whose products the counter sees
    config, length = lm.config, 24
    ids = torch.randint(0, 300, (1, length))
    with FlopCounterMode(display=False) as counter:
        lm(input_ids=ids, labels=ids).loss.backward()
    width = config.num_attention_heads * config.head_dim
    half = 6.0 * config.num_hidden_layers * width * length**2
    mine = step_flops(config, [length], length, config.vocab_size)
    assert mine + half == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert layer_weights(config) == sum(p.numel() for n, p in lm.named_parameters() if ".layers." in n and p.ndim == 2)


def test_stage_1_needs_fewer_operations_and_short_samples_fewer_than_long_ones(world):
    config = load_lm(world / "base").config
    full = step_flops(config, [64], 64, config.vocab_size)
    assert step_flops(config, [64], 64, 14, frozen=True) < 0.75 * full
    assert step_flops(config, [32, 32], 64, config.vocab_size) < full


def test_mfu_is_reported_where_the_peak_is_known(world, tmp_path, capsys, monkeypatch):
    made = PackedTrainer.__init__

    def known(self, *args):
        made(self, *args[:-2], 1e9, args[-1])

    monkeypatch.setattr(PackedTrainer, "__init__", known)
    main(argv(world, tmp_path / "out"))
    values = [line["mfu"] for line in lines(tmp_path / "out" / LOG)]
    assert all(value > 0 for value in values) and "MFU" in capsys.readouterr().out
    assert peak_tflops("NVIDIA H100 80GB HBM3") == 989 and peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("an unknown device") is None


def test_full_memory_says_which_knob(world, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")

    monkeypatch.setattr(PackedTrainer, "training_step", full)
    with pytest.raises(InputError, match=r"memory is full .*--recompute full"):
        main(argv(world, tmp_path / "out"))


def test_validation_without_rows_is_one_line(world, tmp_path):
    with pytest.raises(InputError, match="names no Parquet file"):
        main(argv(world, tmp_path / "out", "--eval_sources", str(tmp_path / "none")))
    assert not (tmp_path / "out").exists()


def test_the_model_card_tells_data_settings_and_metrics(world, tmp_path):
    main(argv(world, tmp_path / "out", "--eval_sources", str(world / "rec"), "--freeze_llm"))
    card = (tmp_path / "out/hf/README.md").read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    for source, tokens in manifest["data"]["tokens_by_source"].items():
        assert f"| {source} | {tokens:,} |" in card
    trained, held_out = (lines(tmp_path / "out" / name)[-1] for name in (LOG, VALIDATION_LOG))
    for row in (
        "| learning_rate | 0.005 |",
        "| steps | 6 |",
        f"| training | 6 | loss | {trained['loss']:.4f} |",
        f"| validation | 6 | loss of video_rec | {held_out['loss_by_source']['video_rec']:.4f} |",
    ):
        assert row in card
    assert "begun from `base_itemic`" in card and "rows 318 to 331" in card
    assert card.startswith("---\nlibrary_name: transformers") and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.0, 2.0], ""),
        ([3.0, 3.5, 2.9], ""),
        ([3.0], ""),
        ([], ""),
        ([3.0, 2.0, 2.98], "the training loss did not fall (3.0000 at step 5, 2.9800 at step 15)"),
        ([3.0, 9.0], "the training loss did not fall (3.0000 at step 5, 9.0000 at step 10)"),
    ],
)
def test_a_loss_that_did_not_fall_is_said(losses, said):
    lines = [{"step": 5 * number, "loss": loss} for number, loss in enumerate(losses, 1)]
    assert loss_that_did_not_fall(lines) == said
