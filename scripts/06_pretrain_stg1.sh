#!/usr/bin/env bash
# 6. Stage 1, itemic-text alignment: the LLM is frozen, only the itemic embeddings learn.
#    Settings: the profile's stg1.env.
#   NUM_TRAINING_STEPS LEARNING_RATE MAX_LENGTH …   flags of pretrain/train.py
source "$(dirname "$0")/common.sh"
settings_of stg1
MODEL_DIR="$MODELS/base_itemic" OUTPUT_DIR="$MODELS/stage1" SOURCES="$DATA_OUTPUT/split_data_pretrain" \
  become bash "$ROOT/pretrain/run_pretrain_stg1_local.sh"
