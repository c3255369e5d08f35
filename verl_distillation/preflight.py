"""What is checked before Ray starts: student, teacher, that they share their base tokens, prompts, lengths."""

from __future__ import annotations

import argparse
from pathlib import Path

from onerec.errors import InputError
from onerec.model_folder import open_model_folder, read_tokenizer
from onerec.records import check_prompts
from onerec.verl.cluster import Pool, fit, has_accelerator
from onerec.verl.launch import check_data, check_head_size, check_model
from onerec.verl.stage import update_prompts


def check(args: argparse.Namespace) -> int:
    """Check everything that a run needs; returns the first extended id. Raises `InputError` in one line."""
    length, prompts = args.max_prompt_length + args.response_length, args.train_batch_size
    if args.distill_adv_min >= args.distill_adv_max:
        what = f"{args.distill_adv_min:g} is not below --distill_adv_max {args.distill_adv_max:g}"
        raise InputError("--distill_adv_min", what, "as -30 and 5")
    choose_rollout(args)
    if args.mini_batch_size != -1 and prompts % args.mini_batch_size:
        what = f"{args.mini_batch_size} does not divide the {prompts} prompts of a step"
        raise InputError("--mini_batch_size", what, "a divisor, or -1")
    if length > args.max_tokens_per_gpu:
        what = f"{args.max_tokens_per_gpu} holds no whole sequence"
        raise InputError("--max_tokens_per_gpu", what, f"at least {length}")
    student = check_model(args.base_model, vllm=args.rollout == "vllm")
    start = student.spec.id_range[0] if args.extend_vocab_start_token < 0 else args.extend_vocab_start_token
    teacher = open_model_folder(args.teacher_model)
    if args.rollout == "vllm":
        check_head_size(args.teacher_model, teacher.config)
    check_same_base(args.base_model, args.teacher_model, start)
    for path, context in ((args.base_model, student.context), (args.teacher_model, teacher.context)):
        if context <= length:
            right = f"--max_prompt_length and --response_length under {context} together"
            raise InputError(path, f"has a context of {context} tokens", right)
    rows = check_data(args.dataset_parquet, ["prompt"])
    for path in (args.dataset_parquet, *args.anchor_parquet):
        check_prompts(path)
    if rows < prompts:
        what = f"has {rows} prompts, fewer than one batch of {prompts}"
        raise InputError(args.dataset_parquet, what, "more prompts, or a smaller --train_batch_size")
    if args.anchor_parquet:
        check_anchors(args)
    return start


def choose_rollout(args: argparse.Namespace) -> None:
    """Set ``rollout`` where it is auto; raise `InputError` where the machine or the parallelism asks for the other."""
    whole = args.rollout_tp_size == args.teacher_tp_size == 1
    if args.rollout == "auto":
        args.rollout = "vllm" if has_accelerator() or not whole else "transformers"
    elif args.rollout == "transformers" and (has_accelerator() or not whole):
        what = "transformers runs on a CPU, one process a model"
        raise InputError("--rollout", what, "vllm on GPUs and for tensor parallelism")


def place(args: argparse.Namespace) -> list[Pool]:
    """The GPUs of student and teachers, one pool each; sets ``n_gpus`` where it is -1.

    Raises `InputError` where they do not fit.
    """
    anchors = args.teacher_tp_size if args.anchor_parquet else 0
    rows = update_prompts(args) * args.rollout_n
    student = Pool("student", "--n_gpus", args.n_gpus, args.nnodes, args.rollout_tp_size, rows)
    what = f"teachers ({anchors} of them the anchors')" if anchors else "teacher"
    gpus = args.teacher_n_gpus + anchors
    placed = fit(student, Pool(what, "--teacher_n_gpus", gpus, args.teacher_nnodes, args.teacher_tp_size))
    args.n_gpus = placed[0].gpus
    return placed


def check_anchors(args: argparse.Namespace) -> None:
    """Raise `InputError` unless anchors can be used as asked."""
    for path in args.anchor_parquet:
        check_data(path, ["prompt"])
    if args.loss != "forward_kl_topk":
        what = f"does not go with --loss {args.loss}, which leaves itemic tokens out"
        raise InputError("--anchor_parquet", what, "--loss forward_kl_topk")
    if args.teacher_nnodes > 1:
        what = "is more than 1, and the anchors' teacher stands beside the other on one node"
        raise InputError("--teacher_nnodes", what, "1")


def check_same_base(student: Path, teacher: Path, start: int) -> None:
    """Raise `InputError` unless student and teacher give every id below ``start`` to the same token.

    The teacher scores the student's ids, not its text, so a teacher with another tokenizer would silently teach
    nonsense. An id without a token, between the teacher's tokens and its embedding's rows, would be scored -inf.
    """
    theirs, ours = (
        {id: token for token, id in read_tokenizer(path).get_vocab(with_added_tokens=True).items() if id < start}
        for path in (teacher, student)
    )
    for id in range(start):
        if theirs.get(id) != ours.get(id):
            what = f"its id {id} is {theirs.get(id, 'no token')!r}, the student's is {ours.get(id, 'no token')!r}"
            raise InputError(teacher, what, "the base model that the student was made from")
        if id not in ours:
            what = f"{start} counts ids without a token ({id} is one)"
            raise InputError("--extend_vocab_start_token", what, "the student's first itemic id")
