#!/usr/bin/env bash
# 8. SFT on the eight tasks and general chat.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" MAX_LENGTH KEEP_CHECKPOINTS
MODEL_DIR="$SFT_FROM" OUTPUT_DIR="$MODELS/sft" SOURCES="$DATA_OUTPUT/split_data_sft" \
  NUM_TRAINING_STEPS="$SFT_STEPS" LEARNING_RATE="$SFT_LR" LOGGING_PER_STEP="$LOG_STEPS" SAVE_CHECKPOINT_PER_STEP="$SFT_SAVE_STEPS" \
  WEIGHT_DECAY="$SFT_WEIGHT_DECAY" DROPOUT="$SFT_DROPOUT" ATTENTION_DROPOUT="$SFT_ATTENTION_DROPOUT" \
  become bash "$ROOT/pretrain/examples/posttrain_sft.sh"
