"""On-policy distillation: the student answers prompts, the teacher (the LLM that it was made from) scores every token.

    python distill.py --base_model ../models/sft/hf --teacher_model ../models/base/hf \\
        --dataset_parquet ../data/output/onpolicy_distillation.parquet --output_dir output/distill

Runs verl 0.9.1 with Ray, on GPUs with vLLM or on a CPU. Checkpoints go to <output_dir>/checkpoints (the same command
goes on from the newest), the finished model to <output_dir>/hf. --dry_run checks everything and prints the command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import (
    COUNT,
    COUNT_OR_0,
    COUNT_OR_ALL,
    NUMBER,
    POSITIVE,
    SEED,
    SHARE_ABOVE_0,
    ArgumentParser,
    integer,
    number,
    switch,
)
from onerec.run import Manifest
from onerec.verl.cluster import has_accelerator
from onerec.verl.export import export
from onerec.verl.launch import launch
from onerec.verl.stage import begin, check_goes_on
from verl_distillation.anchors import mix
from verl_distillation.preflight import check, place
from verl_distillation.settings import LOSSES, PLUGIN, overrides, prompts_file


def parser() -> ArgumentParser:
    p = ArgumentParser(__doc__)
    add = p.add_argument
    # models and data
    add("--base_model", type=Path, required=True, help="the student: a checkpoint with SIDs")
    add("--teacher_model", type=Path, required=True, help="the teacher: the LLM before expansion")
    add("--dataset_parquet", type=Path, required=True, help="prompts: onpolicy_distillation.parquet")
    anchors = "prompts whose teacher is the student as it came (rl_data/train.parquet); needs forward_kl_topk"
    add("--anchor_parquet", type=Path, nargs="+", default=[], help=anchors)
    between = number(0, 1, open_low=True, open_high=True)
    add("--anchor_share", type=between, default=0.25, help="share of such prompts among all; every file gives as many")
    add("--output_dir", type=Path, required=True, help="checkpoints/, hf/, verl.log")
    # signal
    signal = "policy gradient on the sampled token, or the whole of the teacher's top k"
    add("--loss", choices=tuple(LOSSES), default="reverse_kl", help=signal)
    add("--topk", type=COUNT, default=32, help="forward_kl_topk: the teacher's likeliest tokens")
    add("--distill_adv_max", type=NUMBER, default=5.0, help="reverse_kl: advantages are cut above")
    add("--distill_adv_min", type=NUMBER, default=-30.0, help="reverse_kl: and below")
    start = "first id that the teacher does not have (-1: the student's first itemic id)"
    add("--extend_vocab_start_token", type=integer(0, also=(-1,)), default=-1, help=start)
    whole = "True: one such token masks its whole response, not only itself"
    add("--mask_response_if_have_extend_token", type=switch, default=False, help=whole)
    # rollout
    add("--think_mode", choices=("on", "off", "auto"), default="auto", help="/think, /no_think, or neither")
    add("--temperature", type=POSITIVE, default=1.0, help="of sampling; 1 is the student itself")
    who = "who writes and scores the answers; auto: vllm on GPUs, transformers on a CPU, where it takes no server"
    add("--rollout", choices=("auto", "vllm", "transformers"), default="auto", help=who)
    add("--rollout_n", type=COUNT, default=1, help="answers a prompt")
    add("--max_prompt_length", type=COUNT, default=2048, help="longer prompts are left out")
    add("--response_length", type=COUNT, default=2048, help="tokens of an answer at most")
    # training
    add("--learning_rate", type=POSITIVE, default=1e-6, help="of AdamW")
    add("--lr_scheduler_type", choices=("constant", "cosine"), default="constant", help="after the warm-up")
    add("--warmup_steps", type=COUNT_OR_0, default=0, help="steps of rising learning rate")
    add("--train_batch_size", type=COUNT, default=256, help="prompts a step")
    add("--mini_batch_size", type=COUNT_OR_ALL, default=-1, help="prompts an update (-1: all of a step's)")
    add("--total_steps", type=COUNT, default=200, help="steps in all")
    add("--max_tokens_per_gpu", type=COUNT, default=16384, help="tokens of a forward pass on one GPU")
    add("--save_freq", type=COUNT, default=50, help="steps between checkpoints; the last is saved too")
    add("--keep_checkpoints", type=COUNT, default=2, help="newest that are kept")
    add("--resume", type=switch, default=True, help="go on from the newest checkpoint in --output_dir")
    share = "the exported weights: this share of the distilled model, the rest of the student as it came"
    add("--merge_ratio", type=SHARE_ABOVE_0, default=1.0, help=share)
    add("--seed", type=SEED, default=42, help="order of the prompts")
    # machines
    gpus = "student: GPUs a node (on a CPU: processes); -1: what the teachers leave (on a CPU: 1)"
    add("--n_gpus", type=COUNT_OR_ALL, default=-1, help=gpus)
    add("--nnodes", type=COUNT, default=1, help="student: nodes")
    add("--rollout_tp_size", type=COUNT, default=1, help="tensor parallelism of the rollout")
    add("--teacher_n_gpus", type=COUNT, default=1, help="teacher: GPUs a node, its own")
    add("--teacher_nnodes", type=COUNT, default=1, help="teacher: nodes")
    add("--teacher_tp_size", type=COUNT, default=1, help="tensor parallelism of the teacher; the rest are copies")
    add("--dry_run", action="store_true", help="check everything, print the command, run nothing")
    add("--override", nargs="*", default=[], metavar="KEY=VALUE", help="further overrides of verl")
    return p


def main(argv: Sequence[str] | None = None) -> int | None:
    args = parser().parse_args(argv)
    for name in ("base_model", "teacher_model", "dataset_parquet", "output_dir"):
        setattr(args, name, getattr(args, name).absolute())
    args.anchor_parquet = [path.absolute() for path in args.anchor_parquet]
    start = check(args)
    manifest = Manifest("distill", args)
    for path in (args.dataset_parquet, *args.anchor_parquet):
        manifest.input(path)
    models = {"base_model": args.base_model, "teacher_model": args.teacher_model}
    data = {"dataset": [args.dataset_parquet, *args.anchor_parquet]}
    right = "give what it was made from, another --output_dir, or --resume false to begin anew"
    done = begin(args, manifest.stage, models, data, right, anew=not args.resume)
    if done < args.total_steps or args.dry_run:
        pools = place(args)
        check_goes_on(args, done, pools[0])
        if args.anchor_parquet and not args.dry_run:
            counts = mix(args.dataset_parquet, args.anchor_parquet, args.anchor_share, args.seed, prompts_file(args))
            print(f"{counts[0]:,} general prompts, {counts[1]:,} anchors", flush=True)
        log = {"VERL_FILE_LOGGER_PATH": str(args.output_dir / f"metrics_from_step_{done + 1}.jsonl")}
        lines = [*overrides(args, start, not has_accelerator()), *args.override]
        # Where the teachers have no processes of their own, student and teachers compute in turn.
        vllm = args.rollout == "vllm"
        more = {"extra_environment": log, "busy": None if vllm else args.n_gpus, "vllm": vllm}
        launch(lines, [PLUGIN], pools, args.output_dir, dry_run=args.dry_run, **more)
    if args.dry_run:
        return None
    export(args.output_dir / "checkpoints", args.base_model, args.output_dir / "hf", args.merge_ratio)
    manifest.output(args.output_dir / "hf")
    manifest.write(args.output_dir)
    print(f"distilled model: {args.output_dir / 'hf'}")
    return None


if __name__ == "__main__":
    cli(main)()
