#!/usr/bin/env bash
# 7. Stage 2, co-pretraining: all parameters, itemic and general text mixed.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" MAX_LENGTH KEEP_CHECKPOINTS
MODEL_DIR="$STG2_FROM" OUTPUT_DIR="$MODELS/stage2" SOURCES="$DATA_OUTPUT/split_data_pretrain" \
  DATASET_CONFIG="$STG2_DATASET_CONFIG" NUM_TRAINING_STEPS="$STG2_STEPS" LEARNING_RATE="$STG2_LR" LOGGING_PER_STEP="$LOG_STEPS" SAVE_CHECKPOINT_PER_STEP="$SAVE_STEPS" \
  WEIGHT_DECAY="$STG2_WEIGHT_DECAY" DROPOUT="$STG2_DROPOUT" ATTENTION_DROPOUT="$STG2_ATTENTION_DROPOUT" \
  become bash "$ROOT/pretrain/run_pretrain_stg2_local.sh"
