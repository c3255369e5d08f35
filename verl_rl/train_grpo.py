"""GRPO on the recommendation tasks: check everything, start verl, export the result. recipe/onerec/run_grpo.sh calls it.

    python train_grpo.py --base_model ../pretrain/output/sft/hf --data_dir ../data/output/rl_data \\
        --catalogue ../data/output/benchmark_data/video_ad_pid2sid.parquet --output_dir output/grpo [--dry_run]

Writes checkpoints/global_step_<n>/ (verl's), metrics_<attempt>.jsonl, verl.log, hf/ (the exported checkpoint),
validation.json (Pass@k and Recall@k of the test file before, during and after) and manifest.json. The same command again goes on
from the newest checkpoint.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.content import check_made_from, files_digest, model_digest
from onerec.errors import InputError
from onerec.files import RL_TEST, RL_TRAIN, SID_SPEC
from onerec.folders import check_output, made_by
from onerec.model_folder import ModelFolder
from onerec.parquet import iter_batches, plain, texts
from onerec.records import check_prompts
from onerec.run import Manifest, write_json
from onerec.sid import SidSpec
from onerec.verl.cluster import Pool, fit, has_accelerator
from onerec.verl.export import export, last_checkpoint
from onerec.verl.launch import check_data, check_model, cpu_server, launch
from verl_rl.options import parse_args
from verl_rl.rewards import lowest_score, parse_weights
from verl_rl.settings import (
    ADVANTAGE_KEY,
    DEFAULT_CATALOGUE,
    MERGE_LOG_KEY,
    MERGE_RATIO_KEY,
    SAMPLED_KEY,
    SHARE_KEY,
    RolloutSettings,
)
from verl_rl.validation import read_validation, table

COLUMNS = ["data_source", "prompt", "ability", "reward_model", "extra_info"]
KS = (1, 10, 32)  # of Pass@k and Recall@k
AGENT = Path(__file__).with_name("recipe") / "onerec" / "agent.yaml"


def check(args: argparse.Namespace) -> tuple[ModelFolder, RolloutSettings, int]:
    """Preflight: the model, the settings and the number of training rows; raises `InputError` for what cannot run."""
    model = check_model(args.base_model)
    rows = check_data(args.data_dir / RL_TRAIN, COLUMNS)
    check_data(args.data_dir / RL_TEST, COLUMNS)
    for name in (RL_TRAIN, RL_TEST):
        check_prompts(args.data_dir / name)
    catalogues = {DEFAULT_CATALOGUE: args.catalogue}
    for text in args.catalogues:
        task, sign, file = text.partition("=")
        if not sign:
            raise InputError("--catalogues", f"{text} has no =", "TASK=FILE")
        catalogues[task] = Path(file)
    for path in catalogues.values():
        beside = path.with_name(SID_SPEC)
        if beside.exists() and not SidSpec.load(beside).same_codebooks(model.spec):
            check_model(args.base_model, SidSpec.load(beside))
    indexes = {path: ItemIndex.load(path, model.spec) for path in catalogues.values()}
    check_answers(args.data_dir / RL_TRAIN, model, {task: indexes[path] for task, path in catalogues.items()})
    for path, index in indexes.items() if args.two_stage and args.constrained else ():
        if args.stage2_beam_size > len(index.sids):
            raise InputError(
                "--stage2_beam_size", f"is {args.stage2_beam_size}", f"at most the {len(index.sids)} SIDs of {path}"
            )  # fmt: skip
    below = [name for name, weight in parse_weights(args.reward_weights).items() if lowest_score({name: weight}) < 0]
    if args.advantage == "maxrl" and below:
        raise InputError(
            "--reward_weights",
            f"can be below 0 by {', '.join(below)}",
            "rewards of 0 and more for --advantage maxrl",
        )
    if args.stage2_num_tokens not in (-1, model.spec.n_layers):
        raise InputError(
            "--stage2_num_tokens", f"is {args.stage2_num_tokens}", f"the layers of the model's SIDs: {model.spec.n_layers}"
        )  # fmt: skip
    if rows < args.train_batch_size:
        raise InputError(
            args.data_dir / RL_TRAIN,
            f"has {rows} rows",
            f"at least --train_batch_size {args.train_batch_size}",
        )
    # Closing the thinking and opening the SID take a few tokens; so does the item.
    least = model.spec.n_layers + 8 + (args.stage1_max_tokens if args.enable_think or not args.enable_nonthink else 0)
    if args.two_stage and args.response_length < least:
        raise InputError("--response_length", f"is {args.response_length}", f"at least {least} for thinking and item")
    if args.prompt_length + args.response_length > model.context:
        raise InputError(
            "--prompt_length", f"and --response_length take {args.prompt_length + args.response_length} tokens", f"at most the model's context of {model.context}"
        )  # fmt: skip
    settings = RolloutSettings(
        two_stage=args.two_stage,
        stage2=args.stage2_mode,
        beam_size=args.stage2_beam_size if args.two_stage else 1,
        constrained=args.constrained,
        think=args.enable_think,
        nonthink=args.enable_nonthink,
        force_prefix=args.use_force_prefix,
        stage1_max_tokens=args.stage1_max_tokens,
        catalogues={task: str(path.resolve()) for task, path in catalogues.items()},
        weights=parse_weights(args.reward_weights),
        ks=KS,
        val_beam_size=args.val_beam_size if args.two_stage else 1,
        seed=args.seed,
    )
    return model, settings, rows


def check_answers(path: Path, model: ModelFolder, catalogues: dict[str, ItemIndex]) -> None:
    """Raises `InputError` where a training row's answer names no SID of the model's codebooks, or no answer of a task is in its catalogue."""
    seen, found = 0, dict[str, bool]()
    for batch in iter_batches(path, ["reward_model", "data_source"]):
        try:
            truths, sources = (
                texts(values)[0].to_pylist()
                for values in (pc.struct_field(plain(batch.column(0)), "ground_truth"), batch.column(1))
            )
        except (TypeError, pa.ArrowException):
            what = f"column reward_model is {batch.column(0).type}"
            raise InputError(path, what, "{style, ground_truth}, the answer as text") from None
        for truth, source in zip(truths, sources, strict=True):
            if not (sids := model.spec.parse(truth or "")):
                raise InputError(
                    path, f"row {seen} has no answer in the codebooks {list(model.spec.codebook_sizes)} of {model.path}", "RL data made with the model's SIDs"
                )  # fmt: skip
            task = str(source).rsplit("/", 1)[-1]
            index = catalogues.get(task, catalogues[DEFAULT_CATALOGUE])
            found[task] = found.get(task, False) or any(sid in index for sid in sids)
            seen += 1
    for task, known in found.items():
        if not known:
            what = f"no answer of {task} is in its catalogue, so no reward of it can rise"
            raise InputError(path, what, "the catalogue whose SIDs made the data (--catalogue, --catalogues)")


def place(args: argparse.Namespace) -> list[Pool]:
    """The run's GPUs, training and rollout on the same; sets ``n_gpus`` where it is -1. Raises `InputError` where they do not fit."""
    placed = fit(Pool("training", "--n_gpus", args.n_gpus, args.nnodes, args.rollout_tp_size))
    args.n_gpus = placed[0].gpus
    return placed


def steps_of(args: argparse.Namespace, rows: int) -> int:
    """Training steps of the run."""
    by_epochs = rows // args.train_batch_size * args.num_epochs
    return by_epochs if args.num_training_steps < 0 else args.num_training_steps


def overrides(args: argparse.Namespace, settings: RolloutSettings, steps: int) -> list[str]:
    """verl's configuration of the run."""
    group = args.rollout_n * settings.beam_size
    mini = args.train_batch_size if args.mini_batch_size < 0 else args.mini_batch_size
    length = args.prompt_length + args.response_length
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    values = {
        "algorithm.adv_estimator": "onerec_grpo",
        "algorithm.norm_adv_by_std_in_grpo": args.norm_adv_by_std,
        f"+onerec.{ADVANTAGE_KEY}": args.advantage,
        f"+onerec.{MERGE_RATIO_KEY}": args.merge_ratio,
        f"+onerec.{MERGE_LOG_KEY}": merge_log(args, steps).resolve(),
        f"+onerec.{SAMPLED_KEY}": settings.stage2 == "sample" or not settings.two_stage,
        "data.train_files": (args.data_dir / RL_TRAIN).resolve(),
        "data.val_files": (args.data_dir / RL_TEST).resolve(),
        "data.custom_cls.path": "pkg://verl_rl.dataset",
        "data.custom_cls.name": "OneRecDataset",
        "+data.onerec_rollouts": args.rollout_n,
        "data.train_batch_size": args.train_batch_size,
        "data.max_prompt_length": args.prompt_length,
        "data.max_response_length": args.response_length,
        "data.filter_overlong_prompts": False,
        "data.val_max_samples": -1,
        "data.validation_shuffle": False,
        "data.seed": args.seed,
        "actor_rollout_ref.model.path": args.base_model.resolve(),
        f"{actor}.optim.lr": args.learning_rate,
        f"{actor}.optim.lr_scheduler_type": args.lr_scheduler_type,
        f"{actor}.optim.lr_warmup_steps": args.warmup_steps,
        f"{actor}.ppo_mini_batch_size": mini,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": max(args.max_tokens_per_gpu, length),
        f"{actor}.clip_ratio_low": args.clip_ratio_low,
        f"{actor}.clip_ratio_high": args.clip_ratio_high,
        f"{actor}.use_kl_loss": args.kl_loss_coef > 0,
        f"{actor}.kl_loss_coef": args.kl_loss_coef,
        f"{actor}.kl_loss_type": "low_var_kl",
        f"{actor}.data_loader_seed": args.seed,
        f"{actor}.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        f"{actor}.checkpoint.load_contents": "[model,optimizer,extra]",
        f"{rollout}.name": "onerec_vllm",
        f"{rollout}.n": group,
        f"{rollout}.temperature": args.temperature,
        f"{rollout}.tensor_model_parallel_size": args.rollout_tp_size,
        f"{rollout}.gpu_memory_utilization": args.gpu_memory_utilization,
        f"{rollout}.max_model_len": length,
        f"{rollout}.max_num_seqs": args.max_num_seqs,
        f"{rollout}.max_num_batched_tokens": max(args.max_num_batched_tokens, length),
        f"+{rollout}.engine_kwargs.vllm.max_logprobs": -1,
        f"{rollout}.seed": args.seed,
        f"{rollout}.agent.agent_loop_config_path": AGENT,
        f"{rollout}.agent.default_agent_loop": "onerec_two_stage",
        # The agent loop scores its own outputs.
        "reward.num_workers": 0,
        "trainer.v1.trainer_mode": "onerec_sync",
        "trainer.n_gpus_per_node": args.n_gpus,
        "trainer.nnodes": args.nnodes,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": max(args.num_epochs, 1 << 20 if args.num_training_steps >= 0 else 0),
        "trainer.val_before_train": args.val_before_train,
        "trainer.test_freq": args.test_freq,
        "trainer.save_freq": args.save_freq,
        "trainer.max_actor_ckpt_to_keep": args.max_checkpoints,
        "trainer.default_local_dir": (args.output_dir / "checkpoints").resolve(),
        "trainer.logger": f"[{args.logger}]",
        "trainer.project_name": "onerec",
        "trainer.experiment_name": "grpo",
    }
    shared = {
        f"+actor_rollout_ref.model.override_config.{SHARE_KEY}": True,
        "++actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.model.use_remove_padding": False,
    }
    values |= shared if args.share_prompts else {}
    server = (
        []
        if has_accelerator()
        else cpu_server(rollout, args.base_model.resolve(), length, args.max_num_seqs, args.rollout_tp_size)
    )
    return [
        *(f"{name}={value}" for name, value in values.items()),
        settings.override(),
        *server,
        *args.overrides,
    ]


def merge_log(args: argparse.Namespace, step: int) -> Path:
    """Where the validation of the exported average is kept."""
    return args.output_dir / "merged" / f"step_{step}_ratio_{args.merge_ratio:g}.jsonl"


def validate_merged(args: argparse.Namespace, settings: RolloutSettings, step: int) -> dict[str, dict[str, float]]:
    """The exported average of two models on the test file, by verl's own validation: task to metric.

    The run does it at its end (verl_rl.trainer); where that is not there, for it was stopped before or had another ratio, verl is
    started once more.
    """
    log = merge_log(args, step)
    folder = log.parent
    if not (log.exists() and read_validation([log])):
        pools = place(args)
        average = vars(args) | {
            "base_model": args.output_dir / "hf",
            "output_dir": folder,
            "kl_loss_coef": 0.0,
        }
        only = ["trainer.val_only=True", "trainer.val_before_train=True", "trainer.resume_mode=disable"]
        launch(
            [*overrides(argparse.Namespace(**average), settings, step), *only], ["verl_rl.register"], pools, folder,
            extra_environment={"VERL_FILE_LOGGER_PATH": str(log.resolve())},
        )  # fmt: skip
    return next(iter(read_validation([log]).values()))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv, __doc__)
    manifest = Manifest("grpo", args)
    model, settings, rows = check(args)
    steps = steps_of(args, rows)
    print(
        f"{rows:,} training prompts, {steps} steps of {args.train_batch_size} prompts × {args.rollout_n} rollouts × "
        f"{settings.beam_size} items; itemic ids {model.spec.id_range[0]} to {model.spec.id_range[1]} of {model.vocab_size} rows",
        flush=True,
    )
    if not args.dry_run:
        sources = {
            "base_model": model_digest(args.base_model),
            "training data": files_digest([args.data_dir / RL_TRAIN]),
        }
        right = "give what it was made from, or another --output_dir"
        ours = (args.output_dir / "checkpoints").is_dir() or made_by(args.output_dir, manifest.stage)
        check_output(args.output_dir / "hf", ours)
        check_made_from(args.output_dir, sources, right)
    done = last_checkpoint(args.output_dir / "checkpoints")
    if args.dry_run or done is None or done < steps:
        attempt = len(list(args.output_dir.glob("metrics_*.jsonl")))
        log = args.output_dir / f"metrics_{attempt}.jsonl"
        pools = place(args)
        launch(
            overrides(args, settings, steps), ["verl_rl.register"], pools, args.output_dir, args.dry_run,
            {"VERL_FILE_LOGGER_PATH": str(log.resolve())},
        )  # fmt: skip
    if args.dry_run:
        return
    export(args.output_dir / "checkpoints", args.base_model, args.output_dir / "hf", args.merge_ratio)
    validation = read_validation(sorted(args.output_dir.glob("metrics_*.jsonl")))
    if args.merge_ratio < 1 and args.test_freq > 0:
        validation["merged"] = validate_merged(args, settings, steps)
    write_json(args.output_dir / "validation.json", validation)
    manifest.input(args.data_dir / RL_TRAIN, rows)
    manifest.output(args.output_dir / "hf")
    manifest.extra["reward_weights"] = json.dumps(settings.weights)
    manifest.write(args.output_dir)
    print(table(validation))
    print(f"checkpoint in {args.output_dir / 'hf'}")


if __name__ == "__main__":
    cli(main)()
