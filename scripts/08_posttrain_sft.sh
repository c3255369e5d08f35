#!/usr/bin/env bash
# 8. SFT on the eight tasks and general chat. Settings: the profile's sft.env.
#   NUM_TRAINING_STEPS LEARNING_RATE DROPOUT …   flags of pretrain/train.py
source "$(dirname "$0")/common.sh"
settings_of sft
MODEL_DIR="$(first_of "$MODELS/stage2/hf" "$MODELS/stage1/hf" "$MODELS/base_itemic")" OUTPUT_DIR="$MODELS/sft" \
  SOURCES="$DATA_OUTPUT/split_data_sft" become bash "$ROOT/pretrain/examples/posttrain_sft.sh"
