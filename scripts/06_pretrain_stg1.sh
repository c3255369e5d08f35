#!/usr/bin/env bash
# 6. Stage 1, itemic-text alignment: the LLM is frozen, only the itemic embeddings learn.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" MAX_LENGTH
MODEL_DIR="$MODELS/base_itemic" OUTPUT_DIR="$MODELS/stage1" SOURCES="$DATA_OUTPUT/split_data_pretrain" \
  DATASET_CONFIG=examples/dataset_config/toy_pretrain.json NUM_TRAINING_STEPS="$STG1_STEPS" LEARNING_RATE="$STG1_LR" LOGGING_PER_STEP="$LOG_STEPS" SAVE_CHECKPOINT_PER_STEP="$SAVE_STEPS" \
  become bash "$ROOT/pretrain/run_pretrain_stg1_local.sh"
