#!/usr/bin/env bash
# SFT on one machine, down to a laptop without a GPU: examples/posttrain_sft.sh with settings for a small model.
# Flags of train.py are variables too, as its --help says, or follow here.
set -euo pipefail
set -a # examples/posttrain_sft.sh and Python read these
: "${DATASET_CONFIG:=examples/dataset_config/toy_sft.json}"
: "${NUM_EPOCHS:=3}"
: "${NUM_TRAINING_STEPS:=-1}" # as the epochs say
: "${LEARNING_RATE:=3e-3}"
: "${MIN_LR:=3e-4}"
: "${MINIBATCH_SIZE:=4096}"
: "${SAVE_CHECKPOINT_PER_STEP:=100}"
set +a
exec bash "$(dirname "$0")/examples/posttrain_sft.sh" "$@"
