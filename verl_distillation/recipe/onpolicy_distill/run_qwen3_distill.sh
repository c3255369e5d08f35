#!/usr/bin/env bash
# On-policy distillation: cd verl_distillation && BASE_MODEL=… TEACHER_MODEL=… bash recipe/onpolicy_distill/run_qwen3_distill.sh [host file]
# A host file, one node a line, says NNODES; the nodes are those of the Ray cluster, started before (scripts/ray_start.sh).
# Every variable can be set in the environment; further flags of distill.py may follow. Paths are relative to verl_distillation/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/entry.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${PYTHON:=python}"
if [[ $# -gt 0 && "$1" != -* ]]; then
  if [[ ! -f "$1" ]]; then
    echo "error: $1: no such host file; one with a node a line, or NNODES=<nodes>" >&2
    exit 2
  fi
  : "${NNODES:=$(grep -c '[^[:space:]]' "$1")}"
  shift
fi
# Models and data
: "${BASE_MODEL:=}"    # the student, a checkpoint with SIDs
: "${TEACHER_MODEL:=}" # the LLM that the student was made from
: "${DATASET_PARQUET:=../data/output/onpolicy_distillation.parquet}"
: "${OUTPUT_DIR:=output/distill}"
: "${ANCHOR_PARQUET:=}"   # prompts of recommendation (rl_data/train.parquet) and other tasks that the student as it came teaches: a file a line; empty: none
: "${ANCHOR_SHARE:=0.25}" # of all prompts
# Signal
: "${LOSS:=reverse_kl}" # or forward_kl_topk
: "${TOPK:=32}"
: "${DISTILL_ADV_MAX:=5.0}"
: "${DISTILL_ADV_MIN:=-30.0}"
: "${EXTEND_VOCAB_START_TOKEN:=-1}" # 151669 on Qwen3; -1 takes it from the student's sid_spec.json
: "${MASK_RESPONSE_IF_HAVE_EXTEND_TOKEN:=False}"
# Rollout
: "${THINK_MODE:=auto}" # on, off, auto
: "${TEMPERATURE:=1.0}"
: "${ROLLOUT_N:=1}"
: "${MAX_PROMPT_LENGTH:=2048}"
: "${RESPONSE_LENGTH:=2048}"
# Training
: "${LEARNING_RATE:=1e-6}"
: "${LR_SCHEDULER_TYPE:=constant}"
: "${WARMUP_STEPS:=0}"
: "${WEIGHT_DECAY:=0.01}"
: "${TRAIN_BATCH_SIZE:=256}"
: "${MINI_BATCH_SIZE:=-1}" # prompts an update; -1: all of a step's
: "${TOTAL_STEPS:=200}"
: "${MAX_TOKENS_PER_GPU:=16384}"
: "${SAVE_FREQ:=50}"
: "${KEEP_CHECKPOINTS:=2}"
: "${RESUME:=True}"
: "${MERGE_RATIO:=1.0}" # share of the distilled weights in what is exported; the rest are BASE_MODEL's
: "${SEED:=42}"
# Machines: the student's GPUs (training and rollout share them), and the teacher's own. On a CPU: processes.
: "${N_GPUS:=-1}" # a node; -1: what the teachers leave (on a CPU: 1 process)
: "${NNODES:=1}"
: "${ROLLOUT_TP_SIZE:=1}"
: "${TEACHER_N_GPUS:=1}"
: "${TEACHER_NNODES:=1}"
: "${TEACHER_TP_SIZE:=1}"
# DRY_RUN=1 checks everything and prints verl's command
: "${DRY_RUN:=0}"
for name in BASE_MODEL TEACHER_MODEL; do
  if [[ -z "${!name}" ]]; then
    echo "error: $name: is not set; give a checkpoint folder" >&2
    exit 2
  fi
done
flags=()
if [[ -n "$ANCHOR_PARQUET" ]]; then
  mapfile -t anchors <<< "$ANCHOR_PARQUET"
  flags+=(--anchor_parquet "${anchors[@]}" --anchor_share "$ANCHOR_SHARE")
fi
[[ "$DRY_RUN" == 1 ]] && flags+=(--dry_run)
command=("$PYTHON" distill.py --base_model "$BASE_MODEL" --teacher_model "$TEACHER_MODEL"
  --dataset_parquet "$DATASET_PARQUET" --output_dir "$OUTPUT_DIR"
  --loss "$LOSS" --topk "$TOPK" --adv_max "$DISTILL_ADV_MAX" --adv_min "$DISTILL_ADV_MIN"
  --extend_vocab_start_token "$EXTEND_VOCAB_START_TOKEN"
  --mask_response_if_have_extend_token "$MASK_RESPONSE_IF_HAVE_EXTEND_TOKEN"
  --think_mode "$THINK_MODE" --temperature "$TEMPERATURE" --rollout_n "$ROLLOUT_N"
  --max_prompt_length "$MAX_PROMPT_LENGTH" --response_length "$RESPONSE_LENGTH"
  --learning_rate "$LEARNING_RATE" --lr_scheduler_type "$LR_SCHEDULER_TYPE" --warmup_steps "$WARMUP_STEPS"
  --weight_decay "$WEIGHT_DECAY" --train_batch_size "$TRAIN_BATCH_SIZE" --mini_batch_size "$MINI_BATCH_SIZE" --total_steps "$TOTAL_STEPS"
  --max_tokens_per_gpu "$MAX_TOKENS_PER_GPU" --save_freq "$SAVE_FREQ" --keep_checkpoints "$KEEP_CHECKPOINTS"
  --resume "$RESUME" --merge_ratio "$MERGE_RATIO" --seed "$SEED" --n_gpus "$N_GPUS" --nnodes "$NNODES" --rollout_tp_size "$ROLLOUT_TP_SIZE"
  --teacher_n_gpus "$TEACHER_N_GPUS" --teacher_nnodes "$TEACHER_NNODES" --teacher_tp_size "$TEACHER_TP_SIZE"
  "${flags[@]}" "$@")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
exec "${command[@]}"
