"""What is checked before Ray starts: the student, the teacher, that they share their base tokens, the prompts, the lengths."""

from __future__ import annotations

import argparse
from pathlib import Path

from onerec.errors import InputError
from onerec.model_folder import open_model_folder, read_tokenizer
from onerec.records import check_prompts
from onerec.verl.cluster import Pool, fit
from onerec.verl.launch import check_data, check_head_size, check_model


def check(args: argparse.Namespace) -> int:
    """Check everything that a run needs; returns the first extended id. Raises `InputError` in one line."""
    if args.adv_min >= args.adv_max:
        raise InputError(
            "--distill_adv_min", f"{args.adv_min:g} is not below --distill_adv_max {args.adv_max:g}", "as -30 and 5"
        )
    if args.mini_batch_size != -1 and args.train_batch_size % args.mini_batch_size:
        raise InputError(
            "--mini_batch_size",
            f"{args.mini_batch_size} does not divide the {args.train_batch_size} prompts of a step",
            "a divisor, or -1",
        )
    if args.max_prompt_length + args.response_length > args.max_tokens_per_gpu:
        raise InputError(
            "--max_tokens_per_gpu",
            f"{args.max_tokens_per_gpu} holds no whole sequence",
            f"at least {args.max_prompt_length + args.response_length}",
        )
    student = check_model(args.base_model)
    start = student.spec.id_range[0] if args.extend_vocab_start_token < 0 else args.extend_vocab_start_token
    teacher = open_model_folder(args.teacher_model)
    check_head_size(args.teacher_model, teacher.config)
    check_same_base(args.base_model, args.teacher_model, start)
    needed = args.max_prompt_length + args.response_length + 1
    for path, context in ((args.base_model, student.context), (args.teacher_model, teacher.context)):
        if context < needed:
            raise InputError(
                path,
                f"has a context of {context} tokens",
                f"--max_prompt_length and --response_length under {context} together",
            )
    rows = check_data(args.dataset_parquet, ["prompt"])
    for path in (args.dataset_parquet, *args.anchor_parquet):
        check_prompts(path)
    if rows < args.train_batch_size:
        raise InputError(
            args.dataset_parquet,
            f"has {rows} prompts, fewer than one batch of {args.train_batch_size}",
            "more prompts, or a smaller --train_batch_size",
        )
    if args.anchor_parquet:
        check_anchors(args)
    return start


def place(args: argparse.Namespace) -> list[Pool]:
    """The GPUs of student and teachers, one pool each; sets ``n_gpus`` where it is -1. Raises `InputError` where they do not fit."""
    anchors = args.teacher_tp_size if args.anchor_parquet else 0
    student = Pool("student", "--n_gpus", args.n_gpus, args.nnodes, args.rollout_tp_size)
    what = f"teachers ({anchors} of them the anchors')" if anchors else "teacher"
    gpus = args.teacher_n_gpus + anchors if args.teacher_n_gpus > 0 else args.teacher_n_gpus
    placed = fit(student, Pool(what, "--teacher_n_gpus", gpus, args.teacher_nnodes, args.teacher_tp_size))
    args.n_gpus = placed[0].gpus
    return placed


def check_anchors(args: argparse.Namespace) -> None:
    """Raise `InputError` unless anchors can be used as asked."""
    for path in args.anchor_parquet:
        check_data(path, ["prompt"])
    if args.loss != "forward_kl_topk":
        raise InputError(
            "--anchor_parquet",
            f"does not go with --loss {args.loss}, which leaves itemic tokens out",
            "--loss forward_kl_topk",
        )
    if args.teacher_nnodes > 1:
        raise InputError(
            "--teacher_nnodes",
            "is more than 1, and the anchors' teacher stands beside the other on one node",
            "1",
        )


def check_same_base(student: Path, teacher: Path, start: int) -> None:
    """Raise `InputError` unless student and teacher give every id below ``start`` to the same token.

    The teacher scores the student's ids, not its text, so a teacher with another tokenizer would silently teach nonsense;
    and ids between the teacher's tokens and its embedding rows would silently be scored -inf, so every id below ``start`` must be a token.
    """
    right = "the base model that the student was made from"
    theirs, ours = (
        {id: token for token, id in read_tokenizer(path).get_vocab(with_added_tokens=True).items() if id < start}
        for path in (teacher, student)
    )
    for id in range(start):
        if theirs.get(id) != ours.get(id):
            what = f"its id {id} is {theirs.get(id, 'no token')!r}, the student's is {ours.get(id, 'no token')!r}"
            raise InputError(teacher, what, right)
        if id not in ours:
            raise InputError(
                "--extend_vocab_start_token",
                f"{start} counts ids without a token ({id} is one)",
                "the student's first itemic id",
            )
