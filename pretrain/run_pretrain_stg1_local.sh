#!/usr/bin/env bash
# Stage 1 on one machine, down to a laptop without a GPU: examples/pretrain_stg1.sh with settings for a small model.
#   MODEL_DIR OUTPUT_DIR DATASET_CONFIG SOURCES …  every variable can be set; further arguments go to train.py
set -euo pipefail
export MODEL_DIR="${MODEL_DIR:-models/tiny_itemic}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/stg1}"
export DATASET_CONFIG="${DATASET_CONFIG:-examples/dataset_config/stg1.json}"
export MAX_LENGTH="${MAX_LENGTH:-4096}" # a small model's rows
export NUM_EPOCHS="${NUM_EPOCHS:-1}"
export LEARNING_RATE="${LEARNING_RATE:-1e-2}" MIN_LR="${MIN_LR:-1e-3}"
export NUM_TRAINING_STEPS="${NUM_TRAINING_STEPS:--1}"
export MINIBATCH_SIZE="${MINIBATCH_SIZE:-4096}"
export SAVE_CHECKPOINT_PER_STEP="${SAVE_CHECKPOINT_PER_STEP:-100}"
exec bash "$(dirname "$0")/examples/pretrain_stg1.sh" "$@"
