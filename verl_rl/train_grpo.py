"""GRPO on the recommendation tasks: check everything, start verl, export the result (recipe/onerec/run_grpo.sh).

    python train_grpo.py --base_model ../pretrain/output/sft/hf --data_dir ../data/output/rl_data \\
        --catalogue ../data/output/benchmark_data/video_ad_pid2sid.parquet --output_dir output/grpo [--dry_run]

Writes checkpoints/global_step_<n>/ (verl's), metrics_<attempt>.jsonl, verl.log, hf/ (the exported checkpoint),
validation.json (Pass@k and Recall@k of the test file before, during and after) and manifest.json. The same command
again goes on from the newest checkpoint.
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
from onerec.errors import InputError
from onerec.files import RL_TEST, RL_TRAIN, SID_SPEC
from onerec.model_folder import ModelFolder
from onerec.parquet import iter_batches, plain, texts
from onerec.qwen3 import check_engine_fits, shape_of
from onerec.records import check_prompts
from onerec.run import Manifest, write_json
from onerec.sid import SidSpec
from onerec.verl.cluster import Pool, fit, gpu_memory, has_accelerator
from onerec.verl.export import export
from onerec.verl.launch import check_data, check_model, cpu_server, launch
from onerec.verl.stage import ACTOR, CPU_SEQUENCES, ROLLOUT, begin, check_goes_on, shared_overrides, update_prompts
from verl_rl import settings as names
from verl_rl.metrics import read_validation, table
from verl_rl.options import parse_args
from verl_rl.rewards import lowest_score, parse_weights
from verl_rl.settings import DEFAULT_CATALOGUE, ITEM_TOKENS, VLLM_ROLLOUT, RolloutSettings

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
    catalogues = check_catalogues(args, model)
    weights = parse_weights(args.reward_weights)
    below = [name for name, weight in weights.items() if lowest_score({name: weight}) < 0]
    if args.advantage == "maxrl" and below:
        what = f"can be below 0 by {', '.join(below)}"
        raise InputError("--reward_weights", what, "rewards of 0 and more for --advantage maxrl")
    check_lengths(args, model)
    if rows < args.train_batch_size:
        right = f"at least --train_batch_size {args.train_batch_size}"
        raise InputError(args.data_dir / RL_TRAIN, f"has {rows} rows", right)
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
        weights=weights,
        ks=KS,
        val_beam_size=args.val_beam_size if args.two_stage else 1,
        seed=args.seed,
    )
    check_memory(args, model, settings)
    return model, settings, rows


def check_memory(args: argparse.Namespace, model: ModelFolder, settings: RolloutSettings) -> None:
    """Raise `InputError` where the item engine, with vLLM where there is thinking, does not fit this machine's GPU."""
    if memory := gpu_memory():
        thinks = settings.rollout == VLLM_ROLLOUT
        beside = int(args.gpu_memory_utilization * memory) if thinks else 0
        right = (
            "a smaller --gpu_memory_utilization, which is vLLM's, or a smaller model" if thinks else "a smaller model"
        )
        check_engine_fits(args.base_model, shape_of(model.config), memory, ITEM_TOKENS, beside=beside, right=right)


def check_catalogues(args: argparse.Namespace, model: ModelFolder) -> dict[str, Path]:
    """The pid2sid.parquet of each task; raises `InputError` where it does not fit the model's SIDs or the answers."""
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
    beams = args.stage2_beam_size if args.two_stage and args.constrained else 0
    for path, index in indexes.items():
        if beams > len(index.sids):
            raise InputError("--stage2_beam_size", f"is {beams}", f"at most the {len(index.sids)} SIDs of {path}")
    return catalogues


def check_lengths(args: argparse.Namespace, model: ModelFolder) -> None:
    """Raise `InputError` where the limits of tokens leave no room for thinking and item."""
    layers = model.spec.n_layers
    if args.stage2_num_tokens not in (-1, layers):
        right = f"the layers of the model's SIDs: {layers}"
        raise InputError("--stage2_num_tokens", f"is {args.stage2_num_tokens}", right)
    # Closing the thinking and opening the SID take a few tokens; so does the item.
    least = layers + 8 + (args.stage1_max_tokens if args.enable_think or not args.enable_nonthink else 0)
    if args.two_stage and args.response_length < least:
        raise InputError("--response_length", f"is {args.response_length}", f"at least {least} for thinking and item")
    if (length := args.prompt_length + args.response_length) > model.context:
        what = f"and --response_length take {length} tokens"
        raise InputError("--prompt_length", what, f"at most the model's context of {model.context}")


def check_answers(path: Path, model: ModelFolder, catalogues: dict[str, ItemIndex]) -> None:
    """Raise `InputError` for a training row whose answer names no SID of the model's codebooks, or a task of whose
    answers none is in its catalogue."""
    seen, found = 0, dict[str, bool]()
    for batch in iter_batches(path, ["reward_model", "data_source"]):
        try:
            columns = pc.struct_field(plain(batch.column(0)), "ground_truth"), batch.column(1)
            truths, sources = (texts(values)[0].to_pylist() for values in columns)
        except (TypeError, pa.ArrowException):
            what = f"column reward_model is {batch.column(0).type}"
            raise InputError(path, what, "{style, ground_truth}, the answer as text") from None
        for truth, source in zip(truths, sources, strict=True):
            if not (sids := model.spec.parse(truth or "")):
                books = list(model.spec.codebook_sizes)
                what = f"row {seen} has no answer in the codebooks {books} of {model.path}"
                raise InputError(path, what, "RL data made with the model's SIDs")
            task = str(source).rsplit("/", 1)[-1]
            index = catalogues.get(task, catalogues[DEFAULT_CATALOGUE])
            found[task] = found.get(task, False) or any(sid in index for sid in sids)
            seen += 1
    for task in (task for task, known in found.items() if not known):
        what = f"no answer of {task} is in its catalogue, so no reward of it can rise"
        raise InputError(path, what, "the catalogue whose SIDs made the data (--catalogue, --catalogues)")


def place(args: argparse.Namespace) -> list[Pool]:
    """The run's GPUs, training and rollout on the same; sets ``n_gpus`` where it is -1.

    Raises `InputError` where they do not fit.
    """
    rows = update_prompts(args) * args.rollout_n * (args.stage2_beam_size if args.two_stage else 1)
    placed = fit(Pool("training", "--n_gpus", args.n_gpus, args.nnodes, args.rollout_tp_size, rows))
    args.n_gpus = placed[0].gpus
    return placed


def steps_of(args: argparse.Namespace, rows: int) -> int:
    by_epochs = rows // args.train_batch_size * args.num_epochs
    return by_epochs if args.num_training_steps < 0 else args.num_training_steps


def overrides(args: argparse.Namespace, settings: RolloutSettings, steps: int) -> list[str]:
    length, model = args.prompt_length + args.response_length, args.base_model.resolve()
    on_cpu = not has_accelerator()
    values = shared_overrides(args, "verl_rl.dataset") | {
        "algorithm.adv_estimator": "onerec_grpo",
        "algorithm.norm_adv_by_std_in_grpo": args.norm_adv_by_std,
        f"+onerec.{names.ADVANTAGE_KEY}": args.advantage,
        f"+onerec.{names.MERGE_RATIO_KEY}": args.merge_ratio,
        f"+onerec.{names.MERGE_LOG_KEY}": merge_log(args, steps).resolve(),
        f"+onerec.{names.SAMPLED_KEY}": settings.stage2 == "sample" or not settings.two_stage,
        "data.train_files": (args.data_dir / RL_TRAIN).resolve(),
        "data.val_files": (args.data_dir / RL_TEST).resolve(),
        "data.custom_cls.name": "OneRecDataset",
        "+data.onerec_rollouts": args.rollout_n,
        "data.max_prompt_length": args.prompt_length,
        "data.filter_overlong_prompts": False,
        "data.val_max_samples": -1,
        "data.validation_shuffle": False,
        "actor_rollout_ref.model.path": model,
        f"{ACTOR}.ppo_max_token_len_per_gpu": max(args.max_tokens_per_gpu, length),
        f"{ACTOR}.clip_ratio_low": args.clip_ratio_low,
        f"{ACTOR}.clip_ratio_high": args.clip_ratio_high,
        f"{ACTOR}.use_kl_loss": args.kl_loss_coef > 0,
        f"{ACTOR}.kl_loss_coef": args.kl_loss_coef,
        f"{ACTOR}.kl_loss_type": "low_var_kl",
        f"{ACTOR}.checkpoint.load_contents": "[model,optimizer,extra]",
        f"{ROLLOUT}.name": settings.rollout,
        f"{ROLLOUT}.n": args.rollout_n * settings.beam_size,
        f"{ROLLOUT}.gpu_memory_utilization": args.gpu_memory_utilization,
        f"{ROLLOUT}.max_model_len": length,
        f"{ROLLOUT}.max_num_seqs": CPU_SEQUENCES if on_cpu else 256,
        f"{ROLLOUT}.max_num_batched_tokens": max(1024 if on_cpu else 8192, length),
        f"+{ROLLOUT}.engine_kwargs.vllm.max_logprobs": -1,
        f"{ROLLOUT}.seed": args.seed,
        f"{ROLLOUT}.agent.agent_loop_config_path": AGENT,
        f"{ROLLOUT}.agent.default_agent_loop": "onerec_two_stage",
        "trainer.v1.trainer_mode": "onerec_sync",
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": max(args.num_epochs, 1 << 20 if args.num_training_steps >= 0 else 0),
        "trainer.test_freq": args.test_freq,
        "trainer.val_before_train": args.test_freq > 0,
        "trainer.max_actor_ckpt_to_keep": args.keep_checkpoints,
        "trainer.default_local_dir": (args.output_dir / "checkpoints").resolve(),
        "trainer.logger": f"[{args.logger}]",
        "trainer.experiment_name": "grpo",
    }
    if settings.rollout != VLLM_ROLLOUT:  # an item engine a GPU
        values[f"{ROLLOUT}.tensor_model_parallel_size"] = 1
    if args.share_prompts:
        values |= {
            f"+actor_rollout_ref.model.override_config.{names.SHARE_KEY}": True,
            "++actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
            "actor_rollout_ref.model.use_remove_padding": False,
        }
    lines = [*(f"{name}={value}" for name, value in values.items()), settings.override()]
    if settings.rollout == VLLM_ROLLOUT and on_cpu:
        lines += cpu_server(ROLLOUT, model, length, CPU_SEQUENCES, args.rollout_tp_size)
    return [*lines, *args.overrides]


def attempts(output: Path) -> list[Path]:
    """The files of metrics, one an attempt, in their order."""
    return sorted(output.glob("metrics_*.jsonl"), key=lambda path: (len(path.name), path.name))


def merge_log(args: argparse.Namespace, step: int) -> Path:
    """Where the validation of the exported average is kept."""
    return args.output_dir / "merged" / f"step_{step}_ratio_{args.merge_ratio:g}.jsonl"


def validate_merged(args: argparse.Namespace, settings: RolloutSettings, step: int) -> dict[str, dict[str, float]]:
    """The exported average of two models on the test file, by verl's own validation: task to metric.

    The run does it at its end (verl_rl.trainer); verl is started once more where that is missing, since the run was
    stopped before or had another ratio.
    """
    log = merge_log(args, step)
    if not (log.exists() and read_validation([log])):
        pools = place(args)
        average = {"base_model": args.output_dir / "hf", "output_dir": log.parent, "kl_loss_coef": 0.0}
        lines = overrides(argparse.Namespace(**(vars(args) | average)), settings, step)
        lines += ["trainer.val_only=True", "trainer.val_before_train=True", "trainer.resume_mode=disable"]
        run_verl(lines, settings, pools, log.parent, log, dry_run=False)
    return next(iter(read_validation([log]).values()))


def run_verl(
    lines: Sequence[str], settings: RolloutSettings, pools: Sequence[Pool], output_dir: Path, log: Path, dry_run: bool
) -> None:
    """`launch` with this stage's module; verl writes its metrics to ``log``."""
    told = {"VERL_FILE_LOGGER_PATH": str(log.resolve())}
    launch(lines, ["verl_rl.register"], pools, output_dir, dry_run, told, vllm=settings.rollout == VLLM_ROLLOUT)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv, __doc__)
    manifest = Manifest("grpo", args)
    model, settings, rows = check(args)
    steps = steps_of(args, rows)
    print(
        f"{rows:,} training prompts, {steps} steps of {args.train_batch_size} prompts × {args.rollout_n} rollouts × "
        f"{settings.beam_size} items; itemic ids {model.spec.id_range[0]} to {model.spec.id_range[1]} of "
        f"{model.vocab_size} rows",
        flush=True,
    )
    models, data = {"base_model": args.base_model}, {"training data": [args.data_dir / RL_TRAIN]}
    done = begin(args, manifest.stage, models, data, "give what it was made from, or another --output_dir")
    output, logs = args.output_dir, attempts(args.output_dir)
    if args.dry_run or done < steps:
        pools = place(args)
        check_goes_on(args, done, pools[0])
        log = output / f"metrics_{len(logs)}.jsonl"
        run_verl(overrides(args, settings, steps), settings, pools, output, log, args.dry_run)
    if args.dry_run:
        return
    export(output / "checkpoints", args.base_model, output / "hf", args.merge_ratio)
    validation = read_validation(attempts(output))
    if args.merge_ratio < 1 and args.test_freq > 0:
        validation["merged"] = validate_merged(args, settings, steps)
    write_json(output / "validation.json", validation)
    manifest.input(args.data_dir / RL_TRAIN, rows)
    manifest.output(output / "hf")
    manifest.extra["reward_weights"] = json.dumps(settings.weights)
    manifest.write(output)
    print(table(validation))
    print(f"checkpoint in {output / 'hf'}")


if __name__ == "__main__":
    cli(main)()
