#!/usr/bin/env bash
# 7. Stage 2, co-pretraining: all parameters, itemic and general text mixed. Settings: the profile's stg2.env.
#   NUM_TRAINING_STEPS LEARNING_RATE DROPOUT …   flags of pretrain/train.py
source "$(dirname "$0")/common.sh"
settings_of stg2
MODEL_DIR="$(first_of "$MODELS/stage1/hf" "$MODELS/base_itemic")" OUTPUT_DIR="$MODELS/stage2" \
  SOURCES="$DATA_OUTPUT/split_data_pretrain" become bash "$ROOT/pretrain/run_pretrain_stg2_local.sh"
