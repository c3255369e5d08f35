#!/usr/bin/env bash
# 9. On-policy distillation: the base model teaches the SFT model on its own answers, so that general ability comes back.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}"
anchors=""
if [[ "$DISTILL_ANCHOR_SHARE" != 0 ]]; then
  anchors="$DATA_OUTPUT/rl_data/train.parquet"
  if ((DISTILL_EXPLAIN_ANCHORS)); then
    # Stage 3 makes the file where the data have a task in words.
    if [[ -f "$DATA_OUTPUT/distillation_anchors.parquet" ]]; then
      anchors+=$'\n'"$DATA_OUTPUT/distillation_anchors.parquet"
    else
      echo "no task of these data describes items or gives reasons: all anchors are of recommendation"
    fi
  fi
fi
BASE_MODEL="${BASE_MODEL:-$MODELS/sft/hf}" TEACHER_MODEL="${TEACHER_MODEL:-$MODELS/base/hf}" \
  DATASET_PARQUET="$DATA_OUTPUT/onpolicy_distillation.parquet" OUTPUT_DIR="$MODELS/distill" \
  ANCHOR_PARQUET="$anchors" ANCHOR_SHARE="$DISTILL_ANCHOR_SHARE" \
  LOSS="$DISTILL_LOSS" TOPK="$DISTILL_TOPK" THINK_MODE="$DISTILL_THINK_MODE" TOTAL_STEPS="$DISTILL_STEPS" LEARNING_RATE="$DISTILL_LR" \
  TRAIN_BATCH_SIZE="$DISTILL_BATCH_SIZE" MINI_BATCH_SIZE="$DISTILL_MINI_BATCH_SIZE" WARMUP_STEPS="$DISTILL_WARMUP_STEPS" MAX_PROMPT_LENGTH="$DISTILL_PROMPT_LENGTH" RESPONSE_LENGTH="$DISTILL_RESPONSE_LENGTH" \
  LR_SCHEDULER_TYPE=cosine SAVE_FREQ="$DISTILL_SAVE_STEPS" N_GPUS="$DISTILL_N_GPUS" \
  become bash "$ROOT/verl_distillation/recipe/onpolicy_distill/run_qwen3_distill.sh"
