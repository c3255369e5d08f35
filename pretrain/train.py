"""Train a language model on packed records: base LLM, stage 1, stage 2 and SFT are this one script with other flags.

    # one CPU or one GPU
    python train.py --model_dir models/base --dataset_config examples/dataset_config/toy_pretrain.json \\
        --sources ../data/output/split_data_pretrain --output_dir output/stg2 --learning_rate 2e-3
    # stage 1: the LLM frozen, only the itemic rows trained
    python train.py … --freeze_llm
    # many GPUs, many nodes
    torchrun --nnodes 2 --nproc_per_node 8 … train.py --model_dir … --dataset_config … --output_dir …

Writes into ``--output_dir``: ``step<N>/global_step<N>/`` (checkpoints to resume from), ``hf/`` (the model for
transformers, with tokenizer, chat template and sid_spec.json), ``train_log.jsonl``, ``tb_logs/``, ``manifest.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.distributed import process_group
from onerec.errors import InputError
from onerec.folders import disk_errors, locked, made_by, remove_folder
from onerec.keeper import STOPPED
from onerec.model_folder import loading, open_model_folder
from onerec.qwen3 import GIB
from onerec.run import Manifest, get_logger, processes, read_json_lines
from onerec.startup import load_transformers
from pretrain import checkpoint
from pretrain.checkpoint import HF, LOG, TB_LOGS, whole_checkpoints
from pretrain.dataset import PackedDataset, load_samples
from pretrain.dataset_config import DatasetConfig, list_shards, load_config
from pretrain.dry_run import dry_run
from pretrain.memory import BF16, FP32, least_recomputation
from pretrain.options import check_args, parser
from pretrain.ranks import run_processes
from pretrain.sharding import Whole, choose

if TYPE_CHECKING:
    from onerec.sid import SidSpec
    from pretrain.trainer import PackedTrainer

log = get_logger("train")
LOADERS = 2  # processes that make the next rows beside a GPU; one row is milliseconds
VALIDATION_ROWS = 64  # packed rows of a validation, at most


def main(argv: Sequence[str] | None = None) -> int | None:
    """Take the output folder, then `run` in it."""
    args = parser(__doc__).parse_args(argv)
    check_args(args)
    sharding = choose(args.deepspeed, args.fsdp, args.dry_run or processes()[1])
    # Threads that spin at a barrier starve each other where the cores are shared (measured: 7 times the step's time);
    # read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    log.setLevel("INFO" if first_process() else "WARNING")
    if args.dry_run:
        return run(args, sharding)
    with locked(args.output_dir, first_process()):
        return run(args, sharding)


def run(args: argparse.Namespace, sharding: Whole) -> int | None:
    """Check everything that can be wrong, then train, then write the model."""
    # All that can be checked without it comes before torch is imported and anything is written.
    manifest = Manifest("pretrain", args)
    config_path, model_dir, output_dir = map(Path, (args.dataset_config, args.model_dir, args.output_dir))
    overrides = {name: getattr(args, name) for name in ("max_length", "num_epochs")}
    config = load_config(config_path, sources=tuple(args.sources) if args.sources else None, **overrides)
    list_shards(config.sources)
    model = open_model_folder(model_dir)
    rows = itemic_rows(args, model.spec, model.vocab_size)
    resume = find_resume(args, output_dir)
    samples = load_samples(config, config_path, model_dir, model.spec, manifest, args.max_bad_ratio, args.token_dir)
    longest, context = int(samples.lengths.max()), model.context
    if longest > context:
        what = f"has a sample of {longest} tokens, the model reads {context}"
        raise InputError(config_path, what, f"set max_sample_length to {context}")
    steps = args.num_training_steps if args.num_training_steps > 0 else None
    world = args.dry_run or processes()[1]
    dataset = PackedDataset(samples, config, args.seed, world, args.gradient_accumulation_steps, steps)
    manifest.extra["data"] = dataset.summary()
    log.info(data_line(dataset))
    validation = validation_rows(args, config, config_path, model.spec) if args.eval_sources else None
    goes_on = resume is not None and args.resume_training_state
    check_ours(output_dir, goes_on or args.overwrite)
    if args.dry_run:
        print(dry_run(args, model.config, dataset, rows, sharding.name or "none"))
        return 0
    run_processes().check_shared(output_dir, str(resume or model_dir))
    load_transformers()
    with process_group():
        trainer = make_trainer(args, dataset, validation, model.spec, rows, config.itemic_id_range, resume, sharding)
        if first_process():
            clear_output(output_dir, goes_on)
        status = train(trainer, resume if goes_on else None)
        if status:
            log.info(stop_line(args, status, trainer))
        elif first_process():
            last = checkpoint.checkpoint_dir(output_dir, trainer.args.max_steps)
            if goes_on and checkpoint.step_of(resume) == trainer.args.max_steps:
                last = resume
            write_outputs(trainer, manifest, model_dir, output_dir, last)
        trainer.curves.close()
    return status


def first_process() -> bool:
    """Whether this is the process of a run that reports and writes."""
    return processes()[0] == 0


def itemic_rows(args: argparse.Namespace, spec: SidSpec | None, vocab_size: int) -> tuple[int, int] | None:
    """(first, last) row that stage 1 trains; None where everything is trained."""
    if not args.freeze_llm:
        return None
    chosen = args.start_optimize_embedding_index
    if spec is None and chosen < 0:
        right = "expand its vocabulary first (scripts/expand_qwen3_vocab.sh)"
        raise InputError(args.model_dir, "has no itemic tokens to train (no sid_spec.json)", right)
    first, last = spec.id_range if spec else (0, vocab_size - 1)
    first = chosen if chosen >= 0 else first
    if not first <= last < vocab_size:
        right = f"the last itemic row of {args.model_dir} is {last}"
        raise InputError("--start_optimize_embedding_index", f"is {first}", right)
    return first, last


def find_resume(args: argparse.Namespace, output_dir: Path) -> Path | None:
    """The checkpoint to go on from; raises `InputError` where another run's checkpoints are in the way."""
    resume = None
    if args.resume_from and not (args.overwrite and args.resume_from == "auto"):
        resume = checkpoint.find_checkpoint(args.resume_from, args.resume_from_tag, output_dir)
    goes_on = resume is not None and args.resume_training_state
    if goes_on:
        checkpoint.check_training_state(resume)
    if whole_checkpoints(output_dir) and not goes_on and not args.overwrite:
        right = "go on with --resume_from auto --resume_training_state, or start over with --overwrite"
        raise InputError(output_dir, "holds checkpoints of an earlier run", right)
    return resume


def check_ours(output_dir: Path, may_replace: bool) -> None:
    """Raise `InputError` for a model or logs that no training made, or a finished training without checkpoints."""
    ours = made_by(output_dir, "pretrain") or whole_checkpoints(output_dir) or (output_dir / LOG).is_file()
    if not ours and (found := [name for name in (HF, TB_LOGS) if (output_dir / name).exists()]):
        raise InputError(output_dir / found[0], "was not made by a training", "give another --output_dir")
    if (output_dir / HF).exists() and not may_replace:
        what = "holds the finished model of an earlier run, whose checkpoints are gone"
        raise InputError(output_dir, what, "give another --output_dir, or start over with --overwrite")


def clear_output(output_dir: Path, goes_on: bool) -> None:
    """Remove half checkpoints and, for a run that begins anew, an earlier one's logs and checkpoints.

    The earlier run's model stands until the new one does.
    """
    earlier = [*(found.parent for _, found in whole_checkpoints(output_dir)), output_dir / TB_LOGS]
    for folder in [] if goes_on else earlier:
        remove_folder(folder)
    for half in output_dir.glob(".step*.tmp*"):  # of other nodes too
        shutil.rmtree(half, ignore_errors=True)


def validation_rows(
    args: argparse.Namespace, config: DatasetConfig, config_path: Path, spec: SidSpec | None
) -> PackedDataset:
    """The rows held out, packed as the training data are, the same for every validation."""
    # Rows come in one order whatever the run's seed, so that runs can be compared.
    held_out = {"sources": tuple(args.eval_sources), "num_epochs": 1, "shuffle_seed": 0, "source_weights": ()}
    config = dataclasses.replace(config, **held_out)
    manifest, model_dir = Manifest("validation", args), Path(args.model_dir)
    samples = load_samples(config, config_path, model_dir, spec, manifest, args.max_bad_ratio, args.token_dir)
    rows = PackedDataset(samples, config, 0)
    del rows.rows[VALIDATION_ROWS:]
    log.info(f"validation: {len(samples):,} samples, {len(rows):,} packed rows; {manifest.dropped_text()}")
    return rows


def make_trainer(
    args: argparse.Namespace,
    dataset: PackedDataset,
    validation: PackedDataset | None,
    spec: SidSpec | None,
    rows: tuple[int, int] | None,
    id_range: tuple[int, int] | None,
    resume: Path | None,
    sharding: Whole,
) -> PackedTrainer:
    """Load the model and put it, the data and the settings into a trainer."""
    import torch
    from transformers import TrainingArguments

    from onerec.content import model_digest
    from onerec.run import seed_everything
    from pretrain.extras import add_dropout, compile_layers, recompute
    from pretrain.flops import peak_tflops
    from pretrain.fused import fuse
    from pretrain.model import PackedLM, load_lm, quiet
    from pretrain.reports import trim_log
    from pretrain.trainer import PackedTrainer

    quiet()
    seed_everything(args.seed)
    world = processes()[1]
    steps = -(-len(dataset) // (world * args.gradient_accumulation_steps))
    if args.num_warmup_steps < 0:
        args.num_warmup_steps = round(0.1 * steps)
    goes_on = resume is not None and args.resume_training_state
    run = {name: getattr(args, name) for name in checkpoint.SETTINGS} | {
        "world_size": world,
        "sharding": sharding.name,
        "steps": steps,
        "trained_rows": None if rows is None else list(rows),
        "dataset": dataset.fingerprint(),
        "model": model_digest(args.model_dir),
    }
    if goes_on:
        checkpoint.check_same_run(resume, run)
    lm = load_lm(args.model_dir)
    cuda = torch.cuda.is_available()
    bf16 = args.precision == "bf16" or (args.precision == "auto" and cuda and torch.cuda.is_bf16_supported())
    model = PackedLM(lm, rows, args.minibatch_size, args.attn_implementation, bf16, args.attention_dropout)
    add_dropout(lm, args.dropout, args.attention_dropout)
    kernels = fuse(lm, torch.device("cuda" if cuda else "cpu")) if bf16 and not args.compile else "plain"
    if args.compile:
        compile_layers(lm)
    recompute(lm, what := recomputation(args, lm.config, dataset.config.max_length, bf16, world, sharding))
    if resume is not None and not goes_on:
        model.load_weights(checkpoint.checkpoint_state(resume, Path(args.model_dir)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    training_args = TrainingArguments(
        output_dir=args.output_dir,
        use_cpu=not cuda,
        ddp_backend="gloo" if world > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_train_epochs=1,
        max_steps=steps,
        learning_rate=args.learning_rate,
        max_grad_norm=args.clip_range,
        seed=args.seed,
        logging_steps=args.logging_per_step,
        save_steps=args.save_checkpoint_per_step,
        save_strategy="steps",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=cuda,
        dataloader_num_workers=LOADERS if cuda else 0,
        dataloader_persistent_workers=cuda,
        **sharding.training_arguments(bf16),
    )
    # A process has one GPU. Without torchrun transformers would cut packed rows over all that it sees (DataParallel).
    training_args._n_gpu = min(training_args.n_gpu, 1)
    attention, shards = lm.config._attn_implementation, f", {sharding.name}" if sharding.name else ""
    size = f"{lm.num_parameters():,} parameters, {trained:,} trained"
    how = f"attention {attention}, {kernels} layers, recompute {what}"
    log.info(f"model {args.model_dir}: {size}, {how}, {training_args.device}{shards}")
    if first_process():
        trim_log(Path(args.output_dir), checkpoint.step_of(resume) if goes_on else 0)
    itemic_range = spec.id_range if spec else id_range
    peak = peak_tflops(torch.cuda.get_device_name()) if cuda else None
    flops = peak * 1e12 * world if peak else None
    return PackedTrainer(model, dataset, training_args, args, itemic_range, run, validation, flops, sharding)


def recomputation(args: argparse.Namespace, config: Any, length: int, half: bool, world: int, sharding: Whole) -> str:
    """What ``--recompute`` means: under auto as little as fits this process's GPU by the estimate, none on a CPU."""
    import torch

    if args.recompute != "auto":
        return args.recompute
    if not torch.cuda.is_available():
        return "none"
    memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / GIB
    shards = {"shards": sharding.name or "none", "gpus": world, "numbers": BF16 if half else FP32}
    return least_recomputation(memory, config, length, args.minibatch_size, args.freeze_llm, **shards)


def train(trainer: PackedTrainer, resume: Path | None) -> int:
    """Run to the last step; a run whose last checkpoint is its last step has nothing left to do.

    Returns 0, or the exit status where a signal ended it before, with a checkpoint.
    """
    import torch
    from transformers import TrainerState

    from pretrain.callbacks import StopAfterStep

    last, step = trainer.args.max_steps, 0
    if resume:
        with loading(resume / checkpoint.TRAINER_STATE, checkpoint.OLDER):
            TrainerState.load_from_json(str(resume / checkpoint.TRAINER_STATE))
        step = checkpoint.step_of(resume)
        log.info(f"resume from {resume}, step {step} of {last}")
    try:
        with StopAfterStep(trainer) as stop:
            if step < last:
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
            else:
                trainer._load_from_checkpoint(str(resume))
        return stop.status
    except torch.OutOfMemoryError as error:
        what = f"the device's memory is full ({str(error).splitlines()[0][:120]})"
        right = "--recompute full, a smaller --max_length, or a smaller --minibatch_size"
        raise InputError(trainer.args.output_dir, what, right) from None


def write_outputs(trainer: PackedTrainer, manifest: Manifest, model_dir: Path, output_dir: Path, last: Path) -> None:
    """The final model for transformers, of the checkpoint ``last``, and the manifest."""
    from pretrain.model import save_hf
    from pretrain.reports import loss_that_did_not_fall, model_card

    trainer.sharding.release()
    lm = checkpoint.lm_of_checkpoint(last, model_dir)  # no process need hold it all
    manifest.output(output_dir / HF)
    manifest.extra |= {"steps": trainer.args.max_steps, "tokens_trained": trainer.tokens_seen}
    logged = (output_dir / LOG).exists()  # not by a training of fewer steps than --logging_per_step
    if what := loss_that_did_not_fall(read_json_lines(output_dir / LOG, "a log of a training") if logged else []):
        manifest.warn(what, "another --learning_rate, or data that say more")
    with disk_errors(output_dir / HF):
        save_hf(lm, model_dir, output_dir / HF, model_card(trainer, manifest, model_dir))
        manifest.write(output_dir)
    log.info(f"wrote {output_dir / HF} after {trainer.args.max_steps} steps; {manifest.dropped_text()}")


def stop_line(args: argparse.Namespace, status: int, trainer: PackedTrainer) -> str:
    """What is said of a run that a signal ended."""
    by = "SIGTERM" if status == STOPPED else "Ctrl-C"
    again = "run the same command again to go on"
    if args.overwrite:
        again += ", without --overwrite"
    if args.resume_from != "auto" or not args.resume_training_state:
        again += ", with --resume_from auto --resume_training_state"
    step = f"step {trainer.state.global_step} of {trainer.args.max_steps}"
    return f"stopped by {by} at {step}, checkpoint written; {again}"


def data_line(dataset: PackedDataset) -> str:
    s = dataset.summary()
    return (
        f"data: {s['samples']:,} samples, {s['tokens']:,} tokens, {s['learnt_tokens']:,} learnt; "
        f"{s['packed_rows']:,} packed rows of up to {dataset.config.max_length:,} tokens over {s['epochs']} epoch(s)"
    )


if __name__ == "__main__":
    cli(main)()
