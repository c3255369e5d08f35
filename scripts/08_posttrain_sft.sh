#!/usr/bin/env bash
# 8. SFT on the eight tasks and general chat.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" MAX_LENGTH
MODEL_DIR="$MODELS/stage2/hf" OUTPUT_DIR="$MODELS/sft" SOURCES="$DATA_OUTPUT/split_data_sft" \
  NUM_TRAINING_STEPS="$SFT_STEPS" LEARNING_RATE="$SFT_LR" LOGGING_PER_STEP="$LOG_STEPS" SAVE_CHECKPOINT_PER_STEP="$SAVE_STEPS" \
  run bash "$ROOT/pretrain/examples/posttrain_sft.sh"
