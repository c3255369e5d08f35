#!/usr/bin/env bash
# SFT on one machine, down to a laptop without a GPU: examples/posttrain_sft.sh with settings for a small model.
#   MODEL_DIR OUTPUT_DIR DATASET_CONFIG SOURCES …  every variable can be set; further arguments go to train.py
set -euo pipefail
export MODEL_DIR="${MODEL_DIR:-output/stg2/hf}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/sft}"
export DATASET_CONFIG="${DATASET_CONFIG:-examples/dataset_config/toy_sft.json}"
export NUM_EPOCHS="${NUM_EPOCHS:-3}"
export LEARNING_RATE="${LEARNING_RATE:-3e-3}" MIN_LR="${MIN_LR:-3e-4}"
export NUM_TRAINING_STEPS="${NUM_TRAINING_STEPS:--1}"
export MINIBATCH_SIZE="${MINIBATCH_SIZE:-4096}"
export SAVE_CHECKPOINT_PER_STEP="${SAVE_CHECKPOINT_PER_STEP:-100}"
exec bash "$(dirname "$0")/examples/posttrain_sft.sh" "$@"
