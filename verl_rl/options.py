"""The command line of `train_grpo`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from onerec.files import RL_TEST, RL_TRAIN
from onerec.flags import (
    COUNT,
    COUNT_OR_0,
    COUNT_OR_ALL,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    ArgumentParser,
    switch,
)
from verl_rl.advantage import ADVANTAGES
from verl_rl.rewards import REWARDS


def parse_args(argv: Sequence[str] | None, description: str | None = None) -> argparse.Namespace:
    """The flags of `train_grpo`; ``description`` stands above them in the help."""
    parser = ArgumentParser(description)
    add = parser.add_argument
    # Inputs and output
    add("--base_model", type=Path, required=True, help="HF checkpoint with SIDs, from SFT or distillation")
    add("--data_dir", type=Path, required=True, help=f"folder with {RL_TRAIN} and {RL_TEST}")
    add("--catalogue", type=Path, required=True, help="pid2sid.parquet: the SIDs that exist")
    add("--catalogues", nargs="*", default=[], metavar="TASK=FILE", help="another pid2sid.parquet for a task")
    add("--output_dir", type=Path, required=True, help="folder for checkpoints, logs and the exported model")
    # Rollout
    add("--rollout_n", type=COUNT, default=1, help="rollouts (thinkings) a prompt")
    add("--two_stage", type=switch, default=True, help="thinking, then items; 0: one sample is the whole answer")
    add("--stage2_mode", choices=("beam", "sample"), default="beam", help="items by beam search or by sampling")
    add("--stage2_beam_size", type=COUNT, default=32, help="items a rollout")
    add("--stage2_num_tokens", type=COUNT_OR_ALL, default=-1, help="itemic tokens of an item (-1: layers)")
    add("--constrained", type=switch, default=True, help="only SIDs that exist")
    add("--enable_think", type=switch, default=False, help="answers with thinking")
    without = "answers without; both: rollouts alternate; neither: no switch in the prompt, the model decides"
    add("--enable_nonthink", type=switch, default=True, help=without)
    forced = "the SID's begin token is forced after the thinking"
    add("--use_force_prefix", type=switch, default=True, help=forced)
    add("--stage1_max_tokens", type=COUNT, default=256, help="tokens of thinking at most")
    longest = "tokens of a prompt at most; longer ones lose oldest items"
    add("--prompt_length", type=COUNT, default=2048, help=longest)
    add("--response_length", type=COUNT, default=512, help="tokens of a response at most")
    add("--temperature", type=POSITIVE, default=1.0, help="of sampling and of the policy's log-probabilities")
    add("--rollout_tp_size", type=COUNT, default=1, help="tensor parallelism of a vLLM server")
    add("--gpu_memory_utilization", type=SHARE_ABOVE_0, default=0.5, help="of a GPU, for vLLM")
    # Rewards
    rewards = f"name=weight,…; names: {', '.join(REWARDS)}"
    add("--reward_weights", default="full_hit=1,partial_hit=0.2", help=rewards)
    # Optimisation
    add("--learning_rate", type=POSITIVE, default=2e-6, help="of AdamW")
    add("--lr_scheduler_type", choices=("constant", "cosine"), default="constant", help="after the warm-up")
    add("--warmup_steps", type=COUNT_OR_0, default=0, help="steps of rising learning rate")
    kl = "of the low-variance KL to the base model; 0: no reference"
    add("--kl_loss_coef", type=NOT_NEGATIVE, default=0.001, help=kl)
    add("--clip_ratio_low", type=SHARE_BELOW_1, default=0.2, help="the probability ratio is clipped this far below 1")
    add("--clip_ratio_high", type=NOT_NEGATIVE, default=0.28, help="and this far above 1 (DAPO, arXiv 2503.14476)")
    kinds = "grpo: beams of a group count alike; maxrl: by their probability, over the group's expected reward"
    add("--advantage", choices=ADVANTAGES, default="grpo", help=kinds)
    add("--norm_adv_by_std", type=switch, default=True, help="grpo: divide a group's advantages by their deviation")
    add("--train_batch_size", type=COUNT, default=64, help="prompts a step")
    add("--mini_batch_size", type=COUNT_OR_ALL, default=-1, help="prompts an update (-1: all of a step's)")
    most = "tokens of a micro-batch at most, a shared prompt counted once"
    add("--max_tokens_per_gpu", type=COUNT, default=16384, help=most)
    once = "compute a group's prompt once for all its items (sdpa); 0: verl's own rows (flash attention on a GPU)"
    add("--share_prompts", type=switch, default=True, help=once)
    share = "the exported weights: this share of the trained model, the rest of the base model; validated once more"
    add("--merge_ratio", type=SHARE_ABOVE_0, default=1.0, help=share)
    add("--num_training_steps", type=COUNT_OR_ALL, default=-1, help="steps in all (-1: by epochs)")
    add("--num_epochs", type=COUNT, default=1, help="passes over the prompts")
    add("--seed", type=SEED, default=42, help="order of the prompts, and sampling")
    # Validation and checkpoints
    between = "steps between validations, of which one is before the first step and one after the last (-1: never)"
    add("--test_freq", type=COUNT_OR_ALL, default=-1, help=between)
    add("--val_beam_size", type=COUNT, default=32, help="beams of a validation prompt")
    add("--save_freq", type=COUNT, default=50, help="steps between checkpoints; the last step is one")
    add("--keep_checkpoints", type=COUNT, default=2, help="checkpoints kept")
    # Machine
    gpus = "GPUs a node; -1: all. Without an accelerator: processes; -1: 1"
    add("--n_gpus", type=COUNT_OR_ALL, default=-1, help=gpus)
    add("--nnodes", type=COUNT, default=1, help="nodes")
    add("--logger", default="console,file", help="verl's loggers: console, file, tensorboard, wandb, …")
    add("--overrides", nargs="*", default=[], help="further hydra overrides of verl; also without the flag")
    add("--dry_run", action="store_true", help="check, print the whole command, start nothing")
    args, rest = parser.parse_known_args(argv)
    if bad := [word for word in rest if word.startswith("-") or "=" not in word]:
        parser.error(f"unrecognized arguments: {' '.join(bad)}")
    args.overrides += rest
    return args
