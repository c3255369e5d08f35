"""From the command line to verl's overrides. No torch, no verl here."""

from __future__ import annotations

import argparse
from pathlib import Path

from onerec.render import renderer_of
from onerec.verl.launch import WATCHED_TRAINER, cpu_server

# The names by which the registered pieces (verl_plugin.py) are asked for.
PLUGIN = "verl_distillation.verl_plugin"
LOSS_MODE = "clipped_reverse_kl"
START_KEY, EXTENDED_KEY = "extend_vocab_start", "extended_logits"
EXTENDED = {"reverse_kl": "masked", "forward_kl_topk": "fixed"}
LOSSES = {"reverse_kl": LOSS_MODE, "forward_kl_topk": "forward_kl_topk"}
# What a prompt is for, as the data set's `data_source` and so as the name of its teacher: general prompts have the base LLM,
# anchors (recommendation prompts) have the student as it came.
GENERAL, ANCHOR = "onpolicy_distillation", "anchor"
# A row's tensor that says which of the two it is: the engine sees tensors only.
ANCHOR_KEY = "is_anchor"
PROMPTS = "prompts.parquet"
# Sequences that one of vLLM's servers on a CPU works on at once.
_CPU_SEQUENCES = 64


def overrides(args: argparse.Namespace, start: int, on_cpu: bool) -> list[str]:
    """Hydra overrides of verl 0.9.1 for one run; ``start`` is the first extended id."""
    return [
        *_data(args),
        *_student(args, start, on_cpu),
        *_rollout(args, on_cpu),
        *_teacher(args, start, on_cpu),
        *_trainer(args),
    ]


def prompts_file(args: argparse.Namespace) -> Path:
    """What verl reads: the prompts as they are, or with the anchors among them."""
    return args.output_dir / PROMPTS if args.anchor_parquet else args.dataset_parquet


def _data(args: argparse.Namespace) -> list[str]:
    prompts = prompts_file(args)
    off = renderer_of(args.base_model).template_without_thinking if args.think_mode == "off" else {}
    return [
        f"data.train_files={prompts}",
        f"data.val_files={prompts}",
        "data.custom_cls.path=pkg://verl_distillation.dataset",
        "data.custom_cls.name=DistillationDataset",
        f"+data.think_mode={args.think_mode}",
        f"+data.model_path={args.base_model}",
        *(f"+data.apply_chat_template_kwargs.{name}={value}" for name, value in off.items()),
        f"data.train_batch_size={args.train_batch_size}",
        f"data.max_prompt_length={args.max_prompt_length}",
        f"data.max_response_length={args.response_length}",
        "data.filter_overlong_prompts=True",
        "data.filter_overlong_prompts_workers=1",
        f"data.seed={args.seed}",
    ]


def _student(args: argparse.Namespace, start: int, on_cpu: bool) -> list[str]:
    actor = "actor_rollout_ref.actor"
    return [
        f"actor_rollout_ref.model.path={args.base_model}",
        f"+actor_rollout_ref.model.override_config.{START_KEY}={start}",
        f"+actor_rollout_ref.model.override_config.{EXTENDED_KEY}={EXTENDED[args.loss]}",
        *([] if on_cpu else ["actor_rollout_ref.model.use_remove_padding=True"]),
        f"{actor}.optim.lr={args.learning_rate}",
        f"{actor}.optim.lr_scheduler_type={args.lr_scheduler_type}",
        f"{actor}.optim.lr_warmup_steps={args.warmup_steps}",
        f"{actor}.optim.weight_decay={args.weight_decay}",
        f"{actor}.ppo_mini_batch_size={args.mini_batch_size if args.mini_batch_size > 0 else args.train_batch_size}",
        f"{actor}.use_dynamic_bsz=True",
        f"{actor}.ppo_max_token_len_per_gpu={args.max_tokens_per_gpu}",
        f"{actor}.use_kl_loss=False",
        f"{actor}.checkpoint.save_contents=[model,optimizer,extra,hf_model]",
        f"{actor}.data_loader_seed={args.seed}",
    ]


def _rollout(args: argparse.Namespace, on_cpu: bool) -> list[str]:
    rollout = "actor_rollout_ref.rollout"
    length = args.max_prompt_length + args.response_length
    return [
        f"{rollout}.name=vllm",
        f"{rollout}.n={args.rollout_n}",
        f"{rollout}.temperature={args.temperature}",
        f"{rollout}.top_p=1.0",
        f"{rollout}.tensor_model_parallel_size={args.rollout_tp_size}",
        f"{rollout}.max_model_len={length + 1}",
        f"{rollout}.max_num_batched_tokens={max(length + 1, 1024 if on_cpu else 8192)}",
        f"{rollout}.max_num_seqs={_CPU_SEQUENCES if on_cpu else 1024}",
        *(cpu_server(rollout, args.base_model, length + 1, _CPU_SEQUENCES, args.rollout_tp_size) if on_cpu else []),
        f"{rollout}.log_prob_use_dynamic_bsz=True",
        f"{rollout}.log_prob_max_token_len_per_gpu={args.max_tokens_per_gpu}",
        f"+{rollout}.agent.agent_loop_manager_class={PLUGIN}.Manager",
    ]


def _teacher(args: argparse.Namespace, start: int, on_cpu: bool) -> list[str]:
    loss = "distillation.distillation_loss"
    anchors = int(bool(args.anchor_parquet))
    return [
        "distillation.enabled=True",
        f"distillation.n_gpus_per_node={args.teacher_n_gpus + anchors * args.teacher_tp_size}",
        f"distillation.nnodes={args.teacher_nnodes}",
        *(_two_teachers(args, on_cpu) if anchors else _one_teacher(args, on_cpu)),
        f"{loss}._target_={PLUGIN}.LossConfig",
        f"{loss}.loss_mode={LOSSES[args.loss]}",
        f"{loss}.topk={args.topk}",
        f"{loss}.use_task_rewards=False",
        f"{loss}.use_policy_gradient={args.loss == 'reverse_kl'}",
        f"+{loss}.adv_min={args.adv_min}",
        f"+{loss}.adv_max={args.adv_max}",
        f"+{loss}.extend_vocab_start={start}",
        f"+{loss}.mask_response_if_extended={args.mask_response_if_have_extend_token}",
    ]


def _server(args: argparse.Namespace, on_cpu: bool) -> dict[str, object]:
    """Settings of a teacher's server."""
    length = args.max_prompt_length + args.response_length
    values: dict[str, object] = {
        "tensor_model_parallel_size": args.teacher_tp_size,
        "max_model_len": length + 1,
        "max_num_batched_tokens": max(length + 1, 1024 if on_cpu else 8192),
        "max_num_seqs": _CPU_SEQUENCES if on_cpu else 256,
    }
    # Weights never change in a teacher, so it keeps its memory, and on a CPU it may compute in float32.
    return values | ({"free_cache_engine": False, "dtype": "float32"} if on_cpu else {})


def _one_teacher(args: argparse.Namespace, on_cpu: bool) -> list[str]:
    teacher = "distillation.teacher_models.teacher_model"
    return [
        f"{teacher}.model_path={args.teacher_model}",
        *(f"{teacher}.inference.{name}={value}" for name, value in _server(args, on_cpu).items()),
        *([f"+{teacher}.inference.enable_sleep_mode=False"] if on_cpu else []),
        *(_cpu_teacher(args, teacher, args.teacher_model) if on_cpu else []),
    ]


def _cpu_teacher(args: argparse.Namespace, teacher: str, model: Path) -> list[str]:
    length = args.max_prompt_length + args.response_length
    return cpu_server(f"{teacher}.inference", model, length + 1, _CPU_SEQUENCES, args.teacher_tp_size)


def _two_teachers(args: argparse.Namespace, on_cpu: bool) -> list[str]:
    """Teachers by the `data_source` of their prompts. verl drops its entry `teacher_model` where there are others, so each is written whole."""
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
        **_server(args, on_cpu),
        **({"enable_sleep_mode": False} if on_cpu else {}),
    }
    lines = []
    for name, key, model, gpus in (
        ("general", GENERAL, args.teacher_model, args.teacher_n_gpus * args.teacher_nnodes),
        ("anchor", ANCHOR, args.base_model, args.teacher_tp_size),
    ):
        place = f"distillation.teacher_models.{name}"
        teacher = f"+{place}"
        lines += [
            f"{teacher}._target_=verl.workers.config.DistillationTeacherModelConfig",
            f"{teacher}.key={key}",
            f"{teacher}.model_path={model}",
            f"{teacher}.num_replicas={gpus // args.teacher_tp_size}",
            *(f"{teacher}.inference.{field}={value}" for field, value in server.items()),
            *(_cpu_teacher(args, place, model) if on_cpu else []),
        ]
    return lines


def _trainer(args: argparse.Namespace) -> list[str]:
    output = Path(args.output_dir)
    return [
        # Distillation has no reward; the estimator only has to be one that needs no critic.
        "algorithm.adv_estimator=grpo",
        # The forward KL has no use for the old policy's log-probabilities; verl then keeps the rollout's instead of computing them.
        f"algorithm.rollout_correction.bypass_mode={args.loss == 'forward_kl_topk'}",
        "reward.num_workers=0",
        f"trainer.v1.trainer_mode={WATCHED_TRAINER}",
        f"trainer.n_gpus_per_node={args.n_gpus}",
        f"trainer.nnodes={args.nnodes}",
        f"trainer.total_training_steps={args.total_steps}",
        "trainer.total_epochs=1000000",
        "trainer.val_before_train=False",
        "trainer.test_freq=-1",
        f"trainer.save_freq={args.save_freq}",
        f"trainer.max_actor_ckpt_to_keep={args.keep_checkpoints}",
        f"trainer.resume_mode={'auto' if args.resume else 'disable'}",
        f"trainer.default_local_dir={output / 'checkpoints'}",
        "trainer.logger=[console,file]",
        "trainer.project_name=onerec",
        "trainer.experiment_name=distillation",
    ]
