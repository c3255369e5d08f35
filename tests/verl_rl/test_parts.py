"""A rollout's tokens, advantages, metrics and settings: the pure parts of the stage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onerec.errors import InputError
from onerec.render import RENDERERS
from onerec.sid import SidSpec
from onerec.verl.export import export, last_checkpoint, merged_weights
from tests.arguments import as_flags
from tests.verl_rl.conftest import ROLLOUT
from verl_rl import assemble, metrics, options, train_grpo
from verl_rl.metrics import read_validation, table
from verl_rl.settings import RolloutSettings

SPEC = SidSpec((4, 3), first_id=20)
QWEN3 = RENDERERS["qwen3"]
MARKS = assemble.Marks(close=1, ends=(2, 9), begin=27, end=28, after_thinking=[3], empty_thinking=[4, 3, 1, 3])


class Tokenizer:
    """One id a character; ``<…>`` is one token."""

    def __call__(self, text, add_special_tokens=False):
        import re

        parts = re.findall(r"<[^<>\n]*>|.", text, flags=re.DOTALL)
        return {"input_ids": [hash(part) % 1000 for part in parts]}


def test_forced_tokens_carry_no_loss_and_the_items_do():
    thought = assemble.without_thinking(MARKS)
    response = assemble.with_item(thought, (21, 24), (-0.5, -0.25), MARKS)
    assert response.ids == [4, 3, 1, 3, 27, 21, 24, 28]
    assert response.mask == [0, 0, 0, 0, 0, 1, 1, 0]
    assert response.logprobs == [0, 0, 0, 0, 0, -0.5, -0.25, 0]


@pytest.mark.parametrize(
    ("ids", "whole", "mask", "ended"),
    [
        ([7, 8, 1], [7, 8, 1, 3, 27], [1, 1, 1, 0, 0], "closed"),
        ([7, 8], [7, 8, 1, 3, 27], [1, 1, 0, 0, 0], "cut"),
        ([7, 2], [7, 1, 3, 27], [1, 0, 0, 0], "stopped"),
        ([7, 9], [7, 1, 3, 27], [1, 0, 0, 0], "stopped"),
        ([], [1, 3, 27], [0, 0, 0], "cut"),
    ],
)
def test_thinking_is_closed_for_the_model_where_it_does_not_close_it(ids, whole, mask, ended):
    thought = assemble.after_thinking(ids, [-1.0] * len(ids), MARKS, force_prefix=True)
    assert (thought.response.ids, thought.response.mask, thought.ended) == (whole, mask, ended)
    assert thought.well_formed == (ended == "closed")


def test_without_force_prefix_the_model_opens_the_sid_itself_or_has_none():
    opened = assemble.after_thinking([7, 1, 3, 27], [-1.0] * 4, MARKS, force_prefix=False)
    assert opened.response.mask == [1, 1, 1, 1] and opened.ended == "closed" and opened.opens_item
    never = assemble.after_thinking([7, 1, 3], [-1.0] * 3, MARKS, force_prefix=False)
    assert never.ended == "no_item" and not never.opens_item and not never.well_formed


def test_a_long_prompt_loses_its_oldest_items_first():
    history = "".join(SPEC.format(codes) for codes in [(0, 0), (1, 1), (2, 2)])
    messages = [{"role": "user", "content": f"看过{history}？"}]
    tokenizer = Tokenizer()
    whole, cut = assemble.encode_prompt(messages, False, tokenizer, SPEC, 1000, QWEN3)
    assert not cut
    short, cut = assemble.encode_prompt(messages, False, tokenizer, SPEC, len(whole) - 1, QWEN3)
    kept = messages[0]["content"].replace(SPEC.format((0, 0)), "")
    assert cut and len(short) == len(whole) - 4
    assert short == assemble.encode_prompt([{"role": "user", "content": kept}], False, tokenizer, SPEC, 1000, QWEN3)[0]
    assert len(assemble.encode_prompt(messages, False, tokenizer, SPEC, 5, QWEN3)[0]) == 5


def test_a_prompt_of_neither_kind_carries_no_switch():
    messages, tokenizer = [{"role": "user", "content": "推荐"}], Tokenizer()
    thinks, not_, left = (
        assemble.encode_prompt(messages, t, tokenizer, SPEC, 99, QWEN3)[0] for t in (True, False, None)
    )
    assert left == tokenizer(QWEN3.prompt_text(messages, None))["input_ids"]
    assert len(left) < len(thinks) < len(not_)


def test_every_beam_gets_its_own_advantage_in_its_group():
    import torch

    from verl_rl.advantage import onerec_grpo

    rewards = torch.tensor([[0, 1.0], [0, 0], [0, 0], [0, 5.0], [0, 5.0], [0, 7.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1], [1, 1], [1, 1]])
    advantages, returns = onerec_grpo(rewards, mask, None, ["a", "a", "a", "b", "b", "c"])
    # Group a: mean 1/3, deviation sqrt(1/3); b is all equal, c is alone: no signal.
    top, low = (2 / 3) / (1 / 3) ** 0.5, (-1 / 3) / (1 / 3) ** 0.5
    expected = [[top, top], [low, 0], [low, low], [0, 0], [0, 0], [0, 0]]
    assert advantages.numpy() == pytest.approx(np.array(expected), abs=1e-4)
    assert torch.equal(advantages, returns)
    plain, _ = onerec_grpo(rewards, mask, {"norm_adv_by_std_in_grpo": False}, ["a", "a", "a", "b", "b", "c"])
    assert plain[:, 0].numpy() == pytest.approx(np.array([2 / 3, -1 / 3, -1 / 3, 0, 0, 0]), abs=1e-6)


def test_maxrl_weighs_beams_by_their_probability_over_the_expected_reward():
    import torch

    from verl_rl.advantage import likelihood_advantages

    # One rollout of three beams, probabilities 1/2, 1/4, 1/4 among them; the second is a hit: R = 1/4.
    log_probs = torch.tensor([0.5, 0.25, 0.25, 0.3, 0.3]).log() - 7
    scores, groups = torch.tensor([0, 1.0, 0, 0, 0]), list("aaabb")
    found = likelihood_advantages(scores, groups, ["a0", "a0", "a0", "b0", "b0"], log_probs)
    assert found.numpy() == pytest.approx(np.array([3 / 2 * -1, 3 / 4 * 3, 3 / 4 * -1, 0, 0]), abs=1e-6)
    # Samples count alike: R = 1/3.
    found = likelihood_advantages(scores, groups, ["a0", "a0", "a0", "b0", "b0"], None)
    assert found.numpy() == pytest.approx(np.array([-1, 2, -1, 0, 0]), abs=1e-6)
    # A hit of hardly any probability is no division by zero, a miss of none is left alone.
    found = likelihood_advantages(torch.tensor([0, 1.0, 0]), list("aaa"), ["a0"] * 3, torch.tensor([0, -60.0, -80.0]))
    assert torch.isfinite(found).all() and abs(float(found[2])) < 1e-6


def test_maxrl_is_the_gradient_of_the_logarithm_of_the_expected_reward():
    import torch

    from verl_rl.advantage import likelihood_advantages

    torch.manual_seed(0)
    # Two thoughts of a prompt with 4 and 2 beams: the expected reward is the mean over the thoughts.
    log_probs = torch.randn(6, dtype=torch.float64, requires_grad=True)
    scores, rollouts = torch.tensor([0, 1.0, 0.5, 0, 1, 0]), ["r0"] * 4 + ["r1"] * 2
    shares = torch.cat([log_probs[:4].softmax(0), log_probs[4:].softmax(0)])
    (shares * scores).sum().div(2).log().backward()
    found = likelihood_advantages(scores, ["p"] * 6, rollouts, log_probs.detach())
    # With the beams' probabilities alone, beside the likelihood of the thoughts: a thought gets what all its beams get.
    own = (
        found / 6
        - torch.tensor(np.repeat([float(found[:4].sum()), float(found[4:].sum())], [4, 2])) / 6 * shares.detach()
    )
    assert own.numpy() == pytest.approx(log_probs.grad.numpy(), abs=1e-6)
    assert float(found.sum()) == pytest.approx(0, abs=1e-5)


def test_stock_grpo_and_ours_agree_where_every_rollout_is_one_output():
    import torch
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    from verl_rl.advantage import onerec_grpo

    torch.manual_seed(0)
    rewards, mask = torch.rand(12, 5), torch.ones(12, 5)
    index = np.array(list("aaaabbbbcccc"))
    theirs, _ = compute_grpo_outcome_advantage(rewards, mask, index)
    assert torch.allclose(onerec_grpo(rewards, mask, None, index)[0], theirs, atol=1e-5)


def test_groups_without_signal_are_counted():
    found = metrics.group_metrics(list("aabbc"), [1, 0, 1, 1, 2], ["x", "y", "x", "x", "z"])
    assert found == {
        "groups": 3,
        "group_size": pytest.approx(5 / 3),
        "no_signal": pytest.approx(2 / 3),
        "distinct_items": pytest.approx(4 / 3),
        "duplicates": pytest.approx(1 / 3),
    }


def test_metrics_come_by_task_and_over_all():
    rows = [
        {
            "task": "video",
            "group": "a",
            "reward": 1.0,
            "answer": 1,
            "info": {"full_hit": 1.0, "kl": float("nan")},
        },
        {"task": "ad", "group": "b", "reward": 0.0, "answer": 2, "info": {"full_hit": 0.0, "kl": 0.5}},
    ]
    found = metrics.task_metrics(rows)
    assert found["onerec/video/full_hit"] == 1 and found["onerec/all/full_hit"] == 0.5
    assert "onerec/video/kl" not in found and found["onerec/all/kl"] == 0.5


def test_low_variance_kl():
    # d = ln 2: 2 - ln 2 - 1.
    assert metrics.low_var_kl(np.array([0.0, -1]), np.array([np.log(2), -1])) == pytest.approx([1 - np.log(2), 0])


def test_the_time_of_a_step_is_split():
    split = metrics.time_split(
        {
            "step": 10.0,
            "gen": 4.0,
            "old_log_prob": 1.0,
            "ref": 1.0,
            "update_actor": 2.0,
            "update_weights": 0.5,
        }
    )
    assert split == {
        "generation": 4.0,
        "log_probabilities": 2.0,
        "update": 2.0,
        "weight_sync": 0.5,
        "checkpoint": 0.0,
        "other": 1.5,
    }


def settings(**values):
    catalogues = {"default": "a b'\"$.parquet", "product": "p"}
    base = {"beam_size": 4, "catalogues": catalogues, "ks": (1, 10), "val_beam_size": 4}
    return RolloutSettings(**ROLLOUT | base | values)


def test_settings_survive_hydras_command_line():
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.rollout.name=x", settings().override()])
    assert RolloutSettings.of(config) == settings()


def test_which_rollouts_think_and_which_catalogue_a_task_takes():
    assert [settings(think=True).thinking(i) for i in range(3)] == [True, False, True]
    assert settings(think=True, nonthink=False).thinking(1) and settings().thinking(0) is False
    assert settings(nonthink=False).thinking(0) is None, "neither is asked for: the model decides"
    assert settings().catalogue("onerec/product") == "p"
    assert settings(constrained=False).catalogue("onerec/product") is None


def test_validation_is_read_from_every_attempt(tmp_path):
    def line(step, value):
        return json.dumps(
            {
                "step": step,
                "data": {
                    "val-aux/onerec/video/recall@10/mean@1": value,
                    "val-aux/onerec/ad/recall@10/mean@1": 0.0,
                    "actor/lr": 1,
                },
            }
        )

    (tmp_path / "metrics_0.jsonl").write_text(line(0, 0.2) + "\n" + line(2, 0.3) + '\n{"step": 3, "da')
    (tmp_path / "metrics_1.jsonl").write_text(line(4, 0.4) + "\n")
    found = read_validation(sorted(tmp_path.glob("*.jsonl")))
    assert list(found) == ["0", "2", "4"] and found["4"]["all"]["recall@10"] == pytest.approx(0.2)
    assert "video        recall@10 0.2000 → 0.4000" in table(found)


def test_the_export_carries_everything_but_the_weights_from_the_base(tmp_path):
    base, saved = tmp_path / "base", tmp_path / "checkpoints" / "global_step_3" / "actor" / "huggingface"
    base.mkdir(), saved.mkdir(parents=True)
    for name in ("config.json", "sid_spec.json", "chat_template.jinja", "model.safetensors"):
        (base / name).write_text("base")
    (saved / "model.safetensors").write_text("trained")
    assert last_checkpoint(tmp_path / "checkpoints") is None
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        export(tmp_path / "checkpoints", base, tmp_path / "hf")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    export(tmp_path / "checkpoints", base, tmp_path / "hf")
    assert (tmp_path / "hf" / "model.safetensors").read_text() == "trained"
    assert (tmp_path / "hf" / "sid_spec.json").read_text() == "base"
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("9")
    with pytest.raises(InputError, match="names step 9"):
        last_checkpoint(tmp_path / "checkpoints")


def test_the_tenth_attempt_at_a_step_counts_more_than_the_second(tmp_path):
    for attempt in (0, 2, 10):
        line = {"step": 7, "data": {"val-core/onerec/video/reward/mean@1": attempt}}
        (tmp_path / f"metrics_{attempt}.jsonl").write_text(json.dumps(line) + "\n")
    assert read_validation(train_grpo.attempts(tmp_path))["7"]["video"]["reward"] == 10


def test_a_run_goes_on_with_as_many_processes_as_wrote_its_checkpoint(tmp_path):
    import argparse

    from onerec.verl.cluster import Pool
    from onerec.verl.stage import check_goes_on

    actor = tmp_path / "checkpoints" / "global_step_50" / "actor"
    actor.mkdir(parents=True)
    args = argparse.Namespace(output_dir=tmp_path)
    check_goes_on(args, 50, Pool("training", "--n_gpus", 8, 3, 1))  # it does not say
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 16}')
    check_goes_on(args, 50, Pool("training", "--n_gpus", 8, 2, 1))
    check_goes_on(args, 0, Pool("training", "--n_gpus", 8, 3, 1))
    with pytest.raises(InputError, match="24 GPUs in all, and the checkpoint of step 50 is of 16; 16 in all"):
        check_goes_on(args, 50, Pool("training", "--n_gpus", 8, 3, 1))


def test_a_run_goes_on_with_the_model_and_the_data_that_it_began_with_alone(tmp_path, monkeypatch):
    import types

    import torch
    from safetensors.torch import save_file

    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}")
    (tmp_path / "train.parquet").write_bytes(b"rows")
    save_file({"w": torch.zeros(3)}, tmp_path / "base/model.safetensors")
    model = types.SimpleNamespace(spec=SPEC, vocab_size=32)
    settings = types.SimpleNamespace(beam_size=2, weights={}, rollout="onerec_items")
    monkeypatch.setattr(train_grpo, "check", lambda args: (model, settings, 100))
    monkeypatch.setattr(train_grpo, "overrides", lambda *args: [])
    started = []
    monkeypatch.setattr(train_grpo, "launch", lambda *args, **more: started.append(args))
    monkeypatch.setattr(train_grpo, "export", lambda *args: None)
    argv = as_flags(
        base_model=tmp_path / "base", data_dir=tmp_path, output_dir=tmp_path / "out", catalogue=tmp_path / "items"
    )
    train_grpo.main(argv)
    train_grpo.main(argv)
    (tmp_path / "train.parquet").write_bytes(b"rowz")
    with pytest.raises(InputError, match="out: holds results that were made from another training data; give"):
        train_grpo.main(argv)
    (tmp_path / "train.parquet").write_bytes(b"rows")
    save_file({"w": torch.ones(3)}, tmp_path / "base/model.safetensors")
    with pytest.raises(InputError, match="made from another base_model"):
        train_grpo.main(argv)
    assert len(started) == 2


def test_an_export_may_average_with_the_base(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    base, saved = tmp_path / "base", tmp_path / "checkpoints" / "global_step_3" / "actor" / "huggingface"
    base.mkdir(), saved.mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    save_file({"b": torch.zeros(2)}, base / "model-00001-of-00002.safetensors")
    save_file({"a": torch.ones(2)}, base / "model-00002-of-00002.safetensors")
    trained = {"a": torch.full((2,), 3.0), "b": torch.full((2,), 2.0, dtype=torch.bfloat16)}
    save_file(trained, saved / "model.safetensors")
    export(tmp_path / "checkpoints", base, tmp_path / "hf", merge_ratio=0.25)
    merged = load_file(tmp_path / "hf" / "model.safetensors")
    assert merged["a"].tolist() == [1.5, 1.5] and merged["b"].tolist() == [0.5, 0.5]
    assert merged["b"].dtype == torch.bfloat16
    served = {}
    for name, tensor in merged_weights(tmp_path / "checkpoints", base, 0.25):
        assert isinstance(tensor, torch.Tensor), "one at a time, since every server of a node does it"
        served[name] = tensor
    assert served.keys() == merged.keys() and all(torch.equal(served[name], merged[name]) for name in merged)
    save_file({"c": torch.ones(1)}, saved / "model.safetensors")
    with pytest.raises(InputError, match="has no weight c to average with"):
        export(tmp_path / "checkpoints", base, tmp_path / "other", merge_ratio=0.5)
    assert not (tmp_path / "other").exists()


def test_a_switch_is_on_or_off():
    import argparse

    assert options.switch("True") and not options.switch("0")
    with pytest.raises(argparse.ArgumentTypeError):
        options.switch("maybe")


def test_a_step_whose_rollouts_are_missing_ends_the_run():
    """As after the death of a rollout server: verl would go on with what is left, or fail in the middle of it."""
    from types import SimpleNamespace

    from omegaconf import OmegaConf

    from verl_rl.trainer import OneRecTrainer

    trainer = OneRecTrainer.__new__(OneRecTrainer)
    trainer.config, trainer.global_steps = OmegaConf.create({"data": {"train_batch_size": 2}}), 3
    with pytest.raises(InputError, match="1 of 2 prompts of step 3 came back without an answer"):
        trainer._balance_batch(SimpleNamespace(keys=["a_0_0", "a_0_1", "a_1_0"]))
    # A validation's means would be over the prompts that were answered.
    expected = {("onerec/video", name): 1 for name in "abc"}
    with pytest.raises(InputError, match="1 of 3 prompts of the validation at step 3 came back without an answer"):
        trainer._val_metrics_update(
            ["onerec/video"] * 2, ["a", "b"], {"reward": [1, 0]}, [], expected_acc_counts=expected
        )
    found = trainer._val_metrics_update(
        ["onerec/video"] * 3, ["a", "b", "c"], {"reward": [1.0, 0.0, 0.5]}, [], expected_acc_counts=expected
    )
    assert found["val-core/onerec/video/reward/mean@1"] == 0.5


def test_a_beam_keeps_its_own_reward_when_verl_writes_the_last_ones_over_it():
    from verl_rl.rollout import BeamOutput

    first, last = (
        BeamOutput(
            prompt_ids=[1],
            response_ids=[5, 6],
            response_mask=[0, 1],
            response_logprobs=[0.0, -1.0],
            num_turns=2,
            reward_score=value,
            own_reward=value,
            own_info={"full_hit": value},
            metrics={},
            extra_fields={"reward_extra_info": {"full_hit": value}},
        )
        for value in (1.0, 0.0)
    )
    # What verl's worker does to the outputs of one rollout.
    first.reward_score = last.reward_score
    first.extra_fields["reward_extra_info"] = last.extra_fields["reward_extra_info"]
    fields = first.as_dict()
    assert fields["rm_scores"].tolist() == [0.0, 1.0] and last.as_dict()["rm_scores"].tolist() == [0.0, 0.0]
    assert fields["extra_fields"]["reward_extra_info"] == {"full_hit": 1.0}
    assert not {"own_reward", "own_info", "reward_score"} & set(fields)


def test_the_plan_counts_the_parameters_of_the_published_models():
    import dataclasses

    from onerec.qwen3 import QWEN3, weights
    from verl_rl import plan

    # Qwen3's model cards, in billions, with its own vocabulary of 151,936 rows.
    published = {"0.6B": 0.60, "1.7B": 1.72, "4B": 4.02, "8B": 8.19, "14B": 14.77, "32B": 32.76}
    for name, shape in QWEN3.items():
        own = dataclasses.replace(shape, vocab_size=151_936)
        assert weights(own) / 1e9 == pytest.approx(published[name], rel=0.01)
    big = QWEN3["8B"]
    # 18 bytes a parameter over 8 GPUs, 2 of the engine, 2 over a vLLM server's 2, and a bucket of 2 GiB.
    assert plan.sync_gib(big, 8) == pytest.approx(weights(big) * (18 / 8 + 2) / 2**30 + 2)
    assert plan.sync_gib(big, 8, 2) == pytest.approx(weights(big) * (18 / 8 + 2 + 1) / 2**30 + 2)
    # The engine's weights, keys and values of 36 layers with 8 heads of 128, six hidden and three inner states of a
    # layer, for 4 prompts with two tokens a beam; 1 GiB of blocks.
    tokens, states = 4 * (1000 + 2 * 32), 2 * 36 * 8 * 128 + 6 * 4096 + 3 * 12288
    assert plan.engine_gib(big, 1000, 32, 4) == pytest.approx(2 * (weights(big) + tokens * states) / 2**30 + 1)
    assert plan.engine_gib(big, 9000, 32, 99) == plan.engine_gib(big, 9000, 32, 999), "a batch is bounded"
    assert (
        plan.training_gib(big, 8, 4096, 200)
        < plan.training_gib(big, 4, 4096, 200)
        < plan.training_gib(big, 4, 4096, 4096)
    )


@pytest.mark.parametrize(
    ("gib", "think", "share", "line"),
    [
        (None, True, 0.5, None),
        (0.1, False, 0.5, r"does not fit one GPU of 0.1 GiB \(.*a batch of 65,536 tokens 1\..\); a smaller model"),
        (2, False, 0.9, None),
        (2, True, 0.9, r"does not fit one GPU of 2.0 GiB \(.*vLLM 1.8\); a smaller --gpu_memory_utilization"),
        (4, True, 0.5, None),
    ],
)
def test_a_gpu_that_is_too_small_for_the_item_engine_is_refused(world, monkeypatch, gib, think, share, line):
    import argparse

    from onerec.model_folder import open_model_folder
    from verl_rl import train_grpo

    monkeypatch.setattr(train_grpo, "gpu_memory", lambda: gib and int(gib * 2**30))
    settings = argparse.Namespace(rollout="onerec_vllm" if think else "onerec_items")
    args = argparse.Namespace(gpu_memory_utilization=share, base_model=world / "model")
    given = (args, open_model_folder(world / "model"), settings)
    if line is None:
        train_grpo.check_memory(*given)
    else:
        with pytest.raises(InputError, match=line):
            train_grpo.check_memory(*given)
