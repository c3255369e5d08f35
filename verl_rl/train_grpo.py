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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.catalog import ItemIndex
from onerec.content import check_made_from, files_digest, model_digest
from onerec.errors import InputError, cli
from onerec.files import RL_TEST, RL_TRAIN, SID_SPEC
from onerec.parquet import iter_batches
from onerec.run import Manifest, write_json
from onerec.sid import SidSpec
from onerec.verl_cluster import Pool, fit, has_accelerator
from onerec.verl_export import export, last_checkpoint
from onerec.verl_launch import CheckedModel, check_data, check_model, cpu_kv_cache, launch
from verl_rl.advantage import ADVANTAGES
from verl_rl.rewards import REWARDS, lowest_score, parse_weights
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
AGENT = Path(__file__).with_name("recipe") / "onerec" / "agent.yaml"
# Rows of the training file whose answers are read before the start.
_LOOK_AT = 1000


def switch(text: str) -> bool:
    """``1``, ``true``, ``True`` and the like."""
    if text.lower() not in ("0", "1", "true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither 1 or true nor 0 or false")
    return text.lower() in ("1", "true")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # Inputs and output
    add("--base_model", type=Path, required=True, help="HF checkpoint with SIDs, from SFT or distillation")
    add("--data_dir", type=Path, required=True, help=f"folder with {RL_TRAIN} and {RL_TEST}")
    add("--catalogue", type=Path, required=True, help="pid2sid.parquet: the SIDs that exist")
    add("--catalogues", nargs="*", default=[], metavar="TASK=FILE", help="another pid2sid.parquet for a task")
    add("--output_dir", type=Path, required=True, help="folder for checkpoints, logs and the exported model")
    # Rollout
    add("--rollout_n", type=int, default=1, help="rollouts (thinkings) a prompt")
    add(
        "--two_stage",
        type=switch,
        default=True,
        help="thinking, then items; 0: one sample is the whole answer",
    )
    add(
        "--stage2_mode",
        choices=("beam", "sample"),
        default="beam",
        help="items by beam search or by sampling",
    )
    add("--stage2_beam_size", type=int, default=32, help="items a rollout")
    add("--stage2_num_tokens", type=int, default=-1, help="itemic tokens of an item (-1: the SIDs' layers)")
    add("--constrained", type=switch, default=True, help="only SIDs that exist")
    add("--enable_think", type=switch, default=False, help="answers with thinking")
    add(
        "--enable_nonthink",
        type=switch,
        default=True,
        help="answers without; with both, rollouts alternate; with neither, the prompt has no switch and the model decides",
    )
    add(
        "--use_force_prefix",
        type=switch,
        default=True,
        help="the SID's begin token is forced after the thinking",
    )
    add("--stage1_max_tokens", type=int, default=256, help="tokens of thinking at most")
    add(
        "--prompt_length",
        type=int,
        default=2048,
        help="tokens of a prompt at most; longer ones lose oldest items",
    )
    add("--response_length", type=int, default=512, help="tokens of a response at most")
    add("--temperature", type=float, default=1.0, help="of sampling, and of the policy's log-probabilities")
    add("--rollout_tp_size", type=int, default=1, help="tensor parallelism of a vLLM server")
    add("--gpu_memory_utilization", type=float, default=0.5, help="share of a GPU's memory that vLLM takes")
    add("--max_num_seqs", type=int, default=256, help="requests that a server runs at once")
    add("--max_num_batched_tokens", type=int, default=8192, help="tokens of a server's batch")
    # Rewards
    add(
        "--reward_weights",
        default="full_hit=1,partial_hit=0.2",
        help=f"name=weight,…; names: {', '.join(REWARDS)}",
    )
    # Optimisation
    add("--learning_rate", type=float, default=2e-6)
    add("--lr_scheduler_type", choices=("constant", "cosine"), default="constant", help="after the warm-up")
    add("--warmup_steps", type=int, default=0)
    add(
        "--kl_loss_coef",
        type=float,
        default=0.001,
        help="of the low-variance KL to the base model; 0: no reference",
    )
    add("--clip_ratio_low", type=float, default=0.2)
    add("--clip_ratio_high", type=float, default=0.28, help="clip-higher (DAPO, arXiv 2503.14476)")
    add(
        "--advantage",
        choices=ADVANTAGES,
        default="grpo",
        help="grpo: every beam of a group counts alike; maxrl: by its probability, over the group's expected reward",
    )
    add(
        "--norm_adv_by_std",
        type=switch,
        default=True,
        help="grpo: divide a group's advantages by their deviation",
    )
    add("--train_batch_size", type=int, default=64, help="prompts a step")
    add("--mini_batch_size", type=int, default=-1, help="prompts an update (-1: all of a step's)")
    add(
        "--max_tokens_per_gpu",
        type=int,
        default=16384,
        help="tokens of a micro-batch at most, a shared prompt counted once",
    )
    add(
        "--share_prompts",
        type=switch,
        default=True,
        help="compute the prompt of a group once for all its items (sdpa attention); 0: verl's own rows, flash attention on a GPU",
    )
    add(
        "--merge_ratio",
        type=float,
        default=1.0,
        help="the exported weights: this share of the trained model, the rest of the base model; validated once more",
    )
    add("--num_training_steps", type=int, default=-1, help="-1: by epochs")
    add("--num_epochs", type=int, default=1)
    add("--seed", type=int, default=42)
    # Validation and checkpoints
    add("--val_before_train", type=switch, default=True)
    add(
        "--test_freq",
        type=int,
        default=-1,
        help="steps between validations (-1: never); the last step is one",
    )
    add("--val_beam_size", type=int, default=32, help="beams of a validation prompt")
    add("--ks", default="1,10,32", help="k of Pass@k and Recall@k")
    add("--val_max_samples", type=int, default=-1, help="rows of the test file (-1: all)")
    add("--save_freq", type=int, default=50, help="steps between checkpoints; the last step is one")
    add("--max_checkpoints", type=int, default=2, help="checkpoints kept")
    # Machine
    add(
        "--n_gpus",
        type=int,
        default=-1,
        help="GPUs a node; -1: all. Without an accelerator: processes; -1: 1",
    )
    add("--nnodes", type=int, default=1)
    add("--logger", default="console,file", help="verl's loggers: console, file, tensorboard, wandb, …")
    add("--overrides", nargs="*", default=[], help="further hydra overrides of verl; also without the flag")
    add("--dry_run", action="store_true", help="check, print the whole command, start nothing")
    args, rest = parser.parse_known_args(argv)
    if bad := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(bad)}")
    args.overrides += rest
    return args


def check(args: argparse.Namespace) -> tuple[CheckedModel, RolloutSettings, int]:
    """Preflight: the model, the settings and the number of training rows; raises `InputError` for what cannot run."""
    model = check_model(args.base_model)
    rows = check_data(args.data_dir / RL_TRAIN, COLUMNS)
    check_data(args.data_dir / RL_TEST, COLUMNS)
    check_answers(args.data_dir / RL_TRAIN, model)
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
        ItemIndex.load(path, model.spec)
    below = [
        name
        for name, weight in parse_weights(args.reward_weights).items()
        if lowest_score({name: weight}) < 0
    ]
    if args.advantage == "maxrl" and below:
        raise InputError(
            "--reward_weights",
            f"can be below 0 by {', '.join(below)}",
            "rewards of 0 and more for --advantage maxrl",
        )
    if not 0 < args.merge_ratio <= 1:
        raise InputError(
            "--merge_ratio", f"is {args.merge_ratio:g}", "above 0, at most 1 (the trained model itself)"
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
    least = (
        model.spec.n_layers
        + 8
        + (args.stage1_max_tokens if args.enable_think or not args.enable_nonthink else 0)
    )
    if args.two_stage and args.response_length < least:
        raise InputError(
            "--response_length", f"is {args.response_length}", f"at least {least} for thinking and item"
        )
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
        ks=tuple(int(k) for k in args.ks.split(",")),
        val_beam_size=args.val_beam_size if args.two_stage else 1,
        seed=args.seed,
    )
    return model, settings, rows


def check_answers(path: Path, model: CheckedModel) -> None:
    """Raises `InputError` where a training row's answer names no SID of the model's codebooks."""
    seen = 0
    for batch in iter_batches(path, ["reward_model"], batch_size=256):
        for value in batch.column("reward_model").to_pylist():
            if not model.spec.parse((value or {}).get("ground_truth") or ""):
                raise InputError(
                    path, f"row {seen} has no answer in the codebooks {list(model.spec.codebook_sizes)} of {model.path}", "RL data made with the model's SIDs"
                )  # fmt: skip
            seen += 1
        if seen >= _LOOK_AT:
            return


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
        "data.val_max_samples": args.val_max_samples,
        "data.validation_shuffle": False,
        "data.seed": args.seed,
        "actor_rollout_ref.model.path": args.base_model.resolve(),
        f"{actor}.strategy": "fsdp2",
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
    cache = (
        []
        if has_accelerator()
        else cpu_kv_cache(rollout, args.base_model.resolve(), length, args.max_num_seqs)
    )
    return [
        *(f"{name}={value}" for name, value in values.items()),
        settings.override(),
        *cache,
        *args.overrides,
    ]


def merge_log(args: argparse.Namespace, step: int) -> Path:
    """Where the validation of the exported average is kept."""
    return args.output_dir / "merged" / f"step_{step}_ratio_{args.merge_ratio:g}.jsonl"


def validate_merged(
    args: argparse.Namespace, settings: RolloutSettings, step: int
) -> dict[str, dict[str, float]]:
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
    args = parse_args(argv)
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
