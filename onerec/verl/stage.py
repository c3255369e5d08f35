"""What distillation and GRPO do alike around `onerec.verl.launch.launch`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onerec.content import check_made_from, files_digest, model_digest
from onerec.errors import InputError
from onerec.folders import check_output, made_by
from onerec.verl.cluster import Pool
from onerec.verl.export import last_checkpoint, processes_of

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# Sequences that one of vLLM's servers on a CPU works on at once.
CPU_SEQUENCES = 64


def begin(
    args: argparse.Namespace,
    stage: str,
    models: dict[str, Path],
    data: dict[str, list[Path]],
    right: str,
    anew: bool = False,
) -> int:
    """The step from which a run in ``--output_dir`` goes on, 0 where it begins; a dry run touches nothing.

    Raises `InputError`, which ends in ``right``, where the folder holds another program's files, or results that were
    made from other ``models`` or ``data`` (what they are called, and paths), unless the run begins ``anew``.
    """
    checkpoints = args.output_dir / "checkpoints"
    if not args.dry_run:
        check_output(args.output_dir / "hf", checkpoints.is_dir() or made_by(args.output_dir, stage))
        sources = {name: model_digest(path) for name, path in models.items()}
        sources |= {name: files_digest(paths) for name, paths in data.items()}
        check_made_from(args.output_dir, sources, right, anew)
    return 0 if anew else last_checkpoint(checkpoints) or 0


def update_prompts(args: argparse.Namespace) -> int:
    """Prompts of an update: a mini-batch's, or the whole batch's where no mini-batch is asked for."""
    return args.mini_batch_size if args.mini_batch_size > 0 else args.train_batch_size


def check_goes_on(args: argparse.Namespace, done: int, pool: Pool) -> None:
    """Raise `InputError` where a run would go on from step ``done`` on another number of GPUs than wrote it.

    Each wrote a part, and verl reads no other number of them; it would say so when the models are loaded.
    """
    wrote = processes_of(args.output_dir / "checkpoints", done) if done else None
    if wrote not in (None, pool.gpus * pool.nodes):
        what = f"{pool.gpus * pool.nodes} GPUs in all, and the checkpoint of step {done} is of {wrote}"
        raise InputError(pool.flag, what, f"{wrote} in all, with --nnodes, or another --output_dir")


def shared_overrides(args: argparse.Namespace, module: str) -> dict[str, Any]:
    """verl's settings by flags that both stages have; ``module`` holds the stage's data set."""
    return {
        "data.custom_cls.path": f"pkg://{module}",
        "data.train_batch_size": args.train_batch_size,
        "data.max_response_length": args.response_length,
        "data.seed": args.seed,
        f"{ACTOR}.optim.lr": args.learning_rate,
        f"{ACTOR}.optim.lr_scheduler_type": args.lr_scheduler_type,
        f"{ACTOR}.optim.lr_warmup_steps": args.warmup_steps,
        f"{ACTOR}.ppo_mini_batch_size": args.mini_batch_size if args.mini_batch_size > 0 else args.train_batch_size,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        f"{ACTOR}.data_loader_seed": args.seed,
        f"{ROLLOUT}.temperature": args.temperature,
        f"{ROLLOUT}.tensor_model_parallel_size": args.rollout_tp_size,
        # Both stages score their answers in the agent loop.
        "reward.num_workers": 0,
        # verl's default is room for 100,000 rows, which a large batch of many items fills.
        "transfer_queue.backend.SimpleStorage.total_storage_size": "null",
        "trainer.n_gpus_per_node": args.n_gpus,
        "trainer.nnodes": args.nnodes,
        "trainer.save_freq": args.save_freq,
        "trainer.project_name": "onerec",
    }
