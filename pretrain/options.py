"""The command line of ``train.py``, and what can be wrong with it before anything is read."""

from __future__ import annotations

import argparse
import importlib.util

from onerec.errors import InputError
from onerec.flags import (
    COUNT,
    COUNT_OR_ALL,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE_BELOW_1,
    ArgumentParser,
    integer,
    number,
    pattern,
)
from pretrain.memory import RECOMPUTE

ATTENTIONS = ("auto", "packed_sdpa", "packed_varlen", "flash_attention_2")


def parser(description: str | None) -> ArgumentParser:
    p = ArgumentParser(description)
    add = p.add_argument
    # model and output
    add("--model_dir", required=True, help="Hugging Face checkpoint to begin from")
    add("--output_dir", required=True, help="folder for checkpoints, log and the final model (hf/)")
    dry = "check everything, say what so many GPUs (H100) take in memory and hours, and train nothing"
    add("--dry_run", type=COUNT, metavar="GPUS", help=dry)
    add("--overwrite", action="store_true", help="start over: remove what an earlier run left in --output_dir")
    add("--resume_from", help="an output_dir, its step<N>, or auto (newest of --output_dir, if any)")
    add("--resume_from_tag", help="folder inside --resume_from, as global_step1000")
    add("--resume_training_state", action="store_true", help="resume optimizer, schedule and place in the data too")
    # data
    add("--dataset_config", required=True, help="JSON dataset config (examples/dataset_config)")
    add("--sources", type=pattern, nargs="+", help="replaces the config's: file_list.json, folders or Parquet patterns")
    add("--max_length", type=COUNT, help="replaces the config's max_length: tokens of a packed row")
    add("--num_epochs", type=COUNT, help="replaces the config's num_epochs")
    add("--token_dir", help="folder for the tokenized data, so that memory does not grow with it; else kept in memory")
    p.add_max_bad_ratio()
    # schedule
    add("--learning_rate", type=POSITIVE, default=2e-4, help="peak learning rate")
    add("--min_lr", type=number(0, also=(-1,)), default=-1, help="last step's rate; -1 is a tenth of the peak")
    kinds = ("cosine", "linear", "constant")
    add("--lr_scheduler_type", default="cosine", choices=kinds, help="how the rate falls after warm-up")
    warmup = "steps over which the rate rises; -1 is a tenth of the run"
    add("--num_warmup_steps", type=integer(0, also=(-1,)), default=-1, help=warmup)
    add("--num_training_steps", type=COUNT_OR_ALL, default=-1, help="optimizer steps; -1 trains the config's epochs")
    rows = "packed rows a process adds up for one optimizer step"
    add("--gradient_accumulation_steps", type=COUNT, default=1, help=rows)
    # optimizer
    add("--weight_decay", type=NOT_NEGATIVE, default=0.1, help="AdamW decay of the layers' matrices")
    add("--beta1", type=SHARE_BELOW_1, default=0.9, help="AdamW beta1")
    add("--beta2", type=SHARE_BELOW_1, default=0.95, help="AdamW beta2")
    add("--clip_range", type=NOT_NEGATIVE, default=1.0, help="gradient norm to clip at; 0 does not clip")
    dropped = "share of the embedded tokens and of the outputs of attention and MLP that training drops"
    add("--dropout", type=SHARE_BELOW_1, default=0.0, help=dropped)
    add("--attention_dropout", type=SHARE_BELOW_1, default=0.0, help="the same of the attention probabilities")
    # stage 1
    add("--freeze_llm", action="store_true", help="train nothing but itemic rows of embedding and head")
    first = "first row trained under --freeze_llm; -1 is the first itemic id of sid_spec.json"
    add("--start_optimize_embedding_index", type=integer(0, also=(-1,)), default=-1, help=first)
    # compute
    add("--minibatch_size", type=COUNT, default=4096, help="positions whose logits exist at a time")
    less = "what the backward pass computes again, for less memory; auto: as little as a GPU's memory asks for"
    add("--recompute", choices=("auto", *RECOMPUTE), default="auto", help=less)
    add("--enable_gradient_checkpointing", action="store_true", help="as --recompute full")
    kernel = "attention over packed rows; auto: the fastest of this machine"
    add("--attn_implementation", choices=ATTENTIONS, default="auto", help=kernel)
    add("--compile", action="store_true", help="torch.compile of every layer")
    add("--deepspeed", help="DeepSpeed config: ZeRO 1, 2 or 3 (examples/zero2.json)")
    add("--fsdp", help="FSDP2 config (examples/fsdp2.json)")
    half = "of weights and what they compute; bf16 has float32 masters in the optimizer; auto: bf16 on a GPU with it"
    add("--precision", choices=("auto", "bf16", "fp32"), default="auto", help=half)
    add("--seed", type=SEED, default=19260817, help="seed of data order and everything random")
    # log, validation and checkpoints
    held_out = "shards held out: their loss is reported with every checkpoint, by source as well"
    add("--eval_sources", type=pattern, nargs="+", help=held_out)
    add("--logging_per_step", type=COUNT, default=5, help="steps between two log lines")
    add("--save_checkpoint_per_step", type=COUNT, default=500, help="steps between two checkpoints; the last has one")
    add("--keep_checkpoints", type=COUNT_OR_ALL, default=2, help="newest checkpoints kept; -1 keeps all")
    return p


def check_args(args: argparse.Namespace) -> None:
    """Raise `InputError` for flags that contradict each other, and fill in those that follow from others."""
    if args.resume_training_state and not args.resume_from:
        right = "say which checkpoint, or --resume_from auto"
        raise InputError("--resume_training_state", "is given without --resume_from", right)
    if args.enable_gradient_checkpointing:
        if args.recompute not in ("auto", "full"):
            what = f"is given beside --recompute {args.recompute}"
            raise InputError("--enable_gradient_checkpointing", what, "it means full: leave one out")
        args.recompute = "full"
    if args.attn_implementation == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise InputError("--attn_implementation", "flash-attn is not installed", "pip install flash-attn, or auto")
    sharded = args.deepspeed or args.fsdp
    if sharded and args.freeze_llm and args.resume_from and not args.resume_training_state:
        what = "takes weights alone under --freeze_llm and shards, whose checkpoints leave out what is frozen"
        right = "convert that checkpoint (scripts/convert_checkpoint_to_hf.sh) and give it as --model_dir"
        raise InputError("--resume_from", what, right)
    if args.start_optimize_embedding_index >= 0 and not args.freeze_llm:
        right = "it says which rows stage 1 trains"
        raise InputError("--start_optimize_embedding_index", "is given without --freeze_llm", right)
    if args.min_lr < 0:
        args.min_lr = args.learning_rate / 10
    if args.min_lr > args.learning_rate:
        what = f"is {args.min_lr}, above the peak {args.learning_rate}"
        raise InputError("--min_lr", what, "it is the rate at the last step")
