#!/usr/bin/env bash
# 4. A tiny Qwen3 made on the spot and trained on general text: stands for the base LLM, and later for the teacher.
#    On a cluster: skip this and give HF_MODEL_DIR (a downloaded Qwen3) to the next step.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}"
TINY_DIR="$MODELS/tiny" OUTPUT_DIR="$MODELS/base" NUM_TRAINING_STEPS="$BASE_STEPS" LEARNING_RATE="$BASE_LR" \
  LOGGING_PER_STEP="$LOG_STEPS" SAVE_CHECKPOINT_PER_STEP="$SAVE_STEPS" MAX_LENGTH=2048 RAW_DATA="$RAW_DATA" \
  become bash "$ROOT/pretrain/scripts/train_base.sh"
