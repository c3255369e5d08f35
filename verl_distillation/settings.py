"""From the command line to verl's overrides. No torch, no verl here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from onerec.render import renderer_of
from onerec.verl.launch import WATCHED_TRAINER, cpu_server
from onerec.verl.stage import ACTOR, CPU_SEQUENCES, ROLLOUT, shared_overrides

# The names by which the registered pieces (verl_plugin.py) are asked for.
PLUGIN = "verl_distillation.verl_plugin"
LOSS_MODE = "clipped_reverse_kl"
START_KEY, EXTENDED_KEY = "extend_vocab_start", "extended_logits"
EXTENDED = {"reverse_kl": "masked", "forward_kl_topk": "fixed"}
LOSSES = {"reverse_kl": LOSS_MODE, "forward_kl_topk": "forward_kl_topk"}
# What a prompt is for, as the data set's `data_source` and so as the name of its teacher: general prompts have the base
# LLM, anchors (recommendation prompts) have the student as it came.
GENERAL, ANCHOR = "onpolicy_distillation", "anchor"
# A row's tensor that says which of the two it is: the engine sees tensors only.
ANCHOR_KEY = "is_anchor"
# verl's names of the rollout and the trainer that need no vLLM.
PLAIN_ROLLOUT, PLAIN_TRAINER = "onerec_text", "onerec_plain"
_TEACHERS = "distillation.teacher_models"


def prompts_file(args: argparse.Namespace) -> Path:
    """What verl reads: the prompts as they are, or with the anchors among them."""
    return args.output_dir / "prompts.parquet" if args.anchor_parquet else args.dataset_parquet


def overrides(args: argparse.Namespace, start: int, on_cpu: bool) -> list[str]:
    """Hydra overrides of verl 0.9.1 for one run; ``start`` is the first extended id."""
    values = shared_overrides(args, "verl_distillation.dataset") | _student(args, start) | _teacher(args, start)
    values |= _two_teachers(args, on_cpu) if args.anchor_parquet else _one_teacher(args, on_cpu)
    values |= _server(ROLLOUT, args, on_cpu, sequences=1024)
    if args.think_mode == "off":
        arguments = renderer_of(args.base_model).template_without_thinking
        values |= {f"+data.apply_chat_template_kwargs.{name}": value for name, value in arguments.items()}
    if not on_cpu:
        values["actor_rollout_ref.model.use_remove_padding"] = True
    lines = [f"{name}={value}" for name, value in values.items()]
    if on_cpu and args.rollout == "vllm":
        lines += _cpu_cache(args, ROLLOUT, args.base_model, args.rollout_tp_size)
    return lines


def _student(args: argparse.Namespace, start: int) -> dict[str, Any]:
    prompts, top_k = prompts_file(args), args.loss == "forward_kl_topk"
    return {
        "data.train_files": prompts,
        "data.val_files": prompts,
        "data.custom_cls.name": "DistillationDataset",
        "+data.think_mode": args.think_mode,
        "+data.model_path": args.base_model,
        "data.max_prompt_length": args.max_prompt_length,
        "data.filter_overlong_prompts": True,
        "data.filter_overlong_prompts_workers": 1,
        "actor_rollout_ref.model.path": args.base_model,
        f"+actor_rollout_ref.model.override_config.{START_KEY}": start,
        f"+actor_rollout_ref.model.override_config.{EXTENDED_KEY}": EXTENDED[args.loss],
        f"{ACTOR}.ppo_max_token_len_per_gpu": args.max_tokens_per_gpu,
        f"{ACTOR}.use_kl_loss": False,
        f"{ROLLOUT}.name": "vllm" if args.rollout == "vllm" else PLAIN_ROLLOUT,
        f"{ROLLOUT}.n": args.rollout_n,
        f"{ROLLOUT}.top_p": 1.0,
        f"{ROLLOUT}.log_prob_use_dynamic_bsz": True,
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu": args.max_tokens_per_gpu,
        f"+{ROLLOUT}.agent.agent_loop_manager_class": f"{PLUGIN}.Manager",
        # Distillation has no reward; the estimator only has to be one that needs no critic.
        "algorithm.adv_estimator": "grpo",
        # The forward KL has no use for the old policy's log-probabilities; verl then keeps the rollout's.
        "algorithm.rollout_correction.bypass_mode": top_k,
        "trainer.v1.trainer_mode": WATCHED_TRAINER if args.rollout == "vllm" else PLAIN_TRAINER,
        f"{ROLLOUT}.seed": args.seed,
        "trainer.total_training_steps": args.total_steps,
        "trainer.total_epochs": 1000000,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.max_actor_ckpt_to_keep": args.keep_checkpoints,
        "trainer.resume_mode": "auto" if args.resume else "disable",
        "trainer.default_local_dir": args.output_dir / "checkpoints",
        "trainer.logger": "[console,file]",
        "trainer.experiment_name": "distillation",
    }


def _teacher(args: argparse.Namespace, start: int) -> dict[str, Any]:
    loss = "distillation.distillation_loss"
    anchors = args.teacher_tp_size if args.anchor_parquet else 0
    return {
        "distillation.enabled": True,
        "distillation.n_gpus_per_node": args.teacher_n_gpus + anchors,
        "distillation.nnodes": args.teacher_nnodes,
        f"{loss}._target_": f"{PLUGIN}.LossConfig",
        f"{loss}.loss_mode": LOSSES[args.loss],
        f"{loss}.topk": args.topk,
        f"{loss}.use_task_rewards": False,
        f"{loss}.use_policy_gradient": args.loss == "reverse_kl",
        f"+{loss}.adv_min": args.distill_adv_min,
        f"+{loss}.adv_max": args.distill_adv_max,
        f"+{loss}.extend_vocab_start": start,
        f"+{loss}.mask_response_if_extended": args.mask_response_if_have_extend_token,
    }


def _length(args: argparse.Namespace) -> int:
    return args.max_prompt_length + args.response_length + 1


def _server(prefix: str, args: argparse.Namespace, on_cpu: bool, sequences: int) -> dict[str, Any]:
    """Limits of a vLLM server that runs ``sequences`` at once on a GPU."""
    return {
        f"{prefix}.max_model_len": _length(args),
        f"{prefix}.max_num_batched_tokens": max(_length(args), 1024 if on_cpu else 8192),
        f"{prefix}.max_num_seqs": CPU_SEQUENCES if on_cpu else sequences,
    }


def _cpu_cache(args: argparse.Namespace, prefix: str, model: Path, tp_size: int) -> list[str]:
    return cpu_server(prefix, model, _length(args), CPU_SEQUENCES, tp_size)


def _teacher_server(prefix: str, args: argparse.Namespace, on_cpu: bool, model: Path) -> dict[str, Any]:
    values = {f"{prefix}.tensor_model_parallel_size": args.teacher_tp_size} | _server(prefix, args, on_cpu, 256)
    if on_cpu and args.rollout == "vllm":
        # Weights never change in a teacher, so it keeps its memory; float32, since such machines have no fast bfloat16.
        values |= {f"{prefix}.free_cache_engine": False, f"{prefix}.dtype": "float32"}
        plain = prefix.removeprefix("+")
        values[f"+{plain}.enable_sleep_mode"] = False
        values |= dict(line.split("=", 1) for line in _cpu_cache(args, plain, model, args.teacher_tp_size))
    return values


def _one_teacher(args: argparse.Namespace, on_cpu: bool) -> dict[str, Any]:
    teacher, model = f"{_TEACHERS}.teacher_model", args.teacher_model
    # verl's default is the student's rollout, and it knows the top k of vLLM's alone.
    values = {f"{teacher}.model_path": model, f"{teacher}.inference.name": "vllm"}
    return values | _teacher_server(f"{teacher}.inference", args, on_cpu, model)


def _two_teachers(args: argparse.Namespace, on_cpu: bool) -> dict[str, Any]:
    """Teachers by the `data_source` of their prompts. verl drops its entry `teacher_model` where there are others, so
    each is written whole."""
    server = {
        "_target_": "verl.workers.config.RolloutConfig",
        "name": "vllm",
        # A rollout's own default is random weights, since training would send it better ones.
        "load_format": "auto",
        "gpu_memory_utilization": 0.5,
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "prompt_length": args.max_prompt_length,
        "response_length": args.response_length,
        "temperature": args.temperature,
    }
    teachers = (
        ("general", GENERAL, args.teacher_model, args.teacher_n_gpus * args.teacher_nnodes),
        ("anchor", ANCHOR, args.base_model, args.teacher_tp_size),
    )
    values: dict[str, Any] = {}
    for name, key, model, gpus in teachers:
        teacher = f"+{_TEACHERS}.{name}"
        values |= {
            f"{teacher}._target_": "verl.workers.config.DistillationTeacherModelConfig",
            f"{teacher}.key": key,
            f"{teacher}.model_path": model,
            f"{teacher}.num_replicas": gpus // args.teacher_tp_size,
        }
        values |= {f"{teacher}.inference.{field}": value for field, value in server.items()}
        values |= _teacher_server(f"{teacher}.inference", args, on_cpu, model)
    return values
