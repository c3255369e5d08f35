#!/usr/bin/env bash
# GRPO on the recommendation tasks: cd verl_rl && BASE_MODEL=… DATA_DIR=… bash recipe/onerec/run_grpo.sh [train_grpo.py's flags]
# Every variable can be set in the environment; DRY_RUN=1 (or --dry_run) checks everything and prints verl's whole command.
# The same command again goes on from the newest checkpoint.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/entry.sh"
here="$(cd "$(dirname "$0")/../.." && pwd)"
: "${PYTHON:=python}"
: "${BASE_MODEL:=$here/../pretrain/output/sft/hf}"
: "${DATA_DIR:=$here/../data/output/rl_data}"
: "${BENCHMARK_DATA_DIR:=$here/../data/output/benchmark_data}"
# The SIDs that exist, of most tasks and of the product task (empty where there is none).
: "${PID2SID:=$BENCHMARK_DATA_DIR/video_ad_pid2sid.parquet}"
: "${PRODUCT_PID2SID=$BENCHMARK_DATA_DIR/product_pid2sid.parquet}"
: "${OUTPUT_DIR:=$here/output/grpo}"
# Rollout
: "${ROLLOUT_N:=1}"
: "${TWO_STAGE:=1}"
: "${STAGE2_MODE:=beam}"
: "${STAGE2_BEAM_SIZE:=32}"
: "${STAGE2_NUM_TOKENS:=-1}"
: "${CONSTRAINED:=1}"
: "${ENABLE_THINK:=0}"
: "${ENABLE_NONTHINK:=1}"
: "${USE_FORCE_PREFIX:=1}"
: "${STAGE1_MAX_TOKENS:=256}"
: "${PROMPT_LENGTH:=2048}"
: "${RESPONSE_LENGTH:=512}"
: "${TEMPERATURE:=1.0}"
: "${ROLLOUT_TP_SIZE:=1}"
: "${GPU_MEMORY_UTILIZATION:=0.5}"
: "${MAX_NUM_SEQS:=256}"
: "${MAX_NUM_BATCHED_TOKENS:=8192}"
# Rewards: think_format, full_hit, partial_hit, pass_rate, pass_at_1, rank_aware
: "${REWARD_WEIGHTS:=full_hit=1,partial_hit=0.2}"
# Optimisation
: "${LEARNING_RATE:=2e-6}"
: "${LR_SCHEDULER_TYPE:=constant}" # or cosine, down to 0 at the last step
: "${WARMUP_STEPS:=0}"
: "${KL_LOSS_COEF:=0.001}"
: "${CLIP_RATIO_LOW:=0.2}"
: "${CLIP_RATIO_HIGH:=0.28}"
: "${ADVANTAGE:=grpo}" # maxrl: beams count by their probability, over the group's expected reward (arXiv 2602.02710)
: "${NORM_ADV_BY_STD:=1}" # 0: grpo's advantages are not divided by their group's deviation (Dr. GRPO)
: "${TRAIN_BATCH_SIZE:=64}"
: "${MINI_BATCH_SIZE:=-1}"
: "${MAX_TOKENS_PER_GPU:=16384}" # of a micro-batch; a shared prompt counts once
: "${SHARE_PROMPTS:=1}" # a group's prompt is computed once (sdpa attention); 0: verl's own rows
: "${MERGE_RATIO:=1}" # below 1: the exported weights are the average with the base model's (WiSE-FT)
: "${NUM_TRAINING_STEPS:=-1}"
: "${NUM_EPOCHS:=1}"
: "${SEED:=42}"
# Validation, checkpoints, machine
: "${VAL_BEFORE_TRAIN:=1}"
: "${TEST_FREQ:=50}"
: "${VAL_BEAM_SIZE:=32}"
: "${SAVE_FREQ:=50}"
: "${N_GPUS:=-1}" # a node; -1: all (on a CPU: 1 process)
: "${NNODES:=1}"
: "${LOGGER:=console,file}"
: "${DRY_RUN:=0}"

flags=()
[[ -n "$PRODUCT_PID2SID" && -f "$PRODUCT_PID2SID" ]] && flags+=(--catalogues "product=$PRODUCT_PID2SID")
[[ "$DRY_RUN" == 1 ]] && flags+=(--dry_run)
command=("$PYTHON" "$here/train_grpo.py" --base_model "$BASE_MODEL" --data_dir "$DATA_DIR" --catalogue "$PID2SID" --output_dir "$OUTPUT_DIR"
  --rollout_n "$ROLLOUT_N" --two_stage "$TWO_STAGE" --stage2_mode "$STAGE2_MODE" --stage2_beam_size "$STAGE2_BEAM_SIZE"
  --stage2_num_tokens "$STAGE2_NUM_TOKENS" --constrained "$CONSTRAINED" --enable_think "$ENABLE_THINK" --enable_nonthink "$ENABLE_NONTHINK"
  --use_force_prefix "$USE_FORCE_PREFIX" --stage1_max_tokens "$STAGE1_MAX_TOKENS" --prompt_length "$PROMPT_LENGTH"
  --response_length "$RESPONSE_LENGTH" --temperature "$TEMPERATURE" --rollout_tp_size "$ROLLOUT_TP_SIZE"
  --gpu_memory_utilization "$GPU_MEMORY_UTILIZATION" --max_num_seqs "$MAX_NUM_SEQS" --max_num_batched_tokens "$MAX_NUM_BATCHED_TOKENS"
  --reward_weights "$REWARD_WEIGHTS" --learning_rate "$LEARNING_RATE" --lr_scheduler_type "$LR_SCHEDULER_TYPE" --warmup_steps "$WARMUP_STEPS"
  --kl_loss_coef "$KL_LOSS_COEF"
  --clip_ratio_low "$CLIP_RATIO_LOW" --clip_ratio_high "$CLIP_RATIO_HIGH" --advantage "$ADVANTAGE" --norm_adv_by_std "$NORM_ADV_BY_STD" --train_batch_size "$TRAIN_BATCH_SIZE"
  --mini_batch_size "$MINI_BATCH_SIZE" --max_tokens_per_gpu "$MAX_TOKENS_PER_GPU" --share_prompts "$SHARE_PROMPTS" --merge_ratio "$MERGE_RATIO"
  --num_training_steps "$NUM_TRAINING_STEPS"
  --num_epochs "$NUM_EPOCHS" --seed "$SEED" --val_before_train "$VAL_BEFORE_TRAIN" --test_freq "$TEST_FREQ"
  --val_beam_size "$VAL_BEAM_SIZE" --save_freq "$SAVE_FREQ" --n_gpus "$N_GPUS" --nnodes "$NNODES" --logger "$LOGGER"
  "${flags[@]}" "$@")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
exec "${command[@]}"
