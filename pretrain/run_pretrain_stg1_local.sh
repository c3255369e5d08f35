#!/usr/bin/env bash
# Stage 1 on one machine, down to a laptop without a GPU: examples/pretrain_stg1.sh with settings for a small model.
# Flags of train.py are variables too, as its --help says, or follow here.
set -euo pipefail
set -a # examples/pretrain_stg1.sh and Python read these
: "${MODEL_DIR:=models/tiny_itemic}"
: "${MAX_LENGTH:=4096}" # a small model's rows
: "${NUM_EPOCHS:=1}"
: "${NUM_TRAINING_STEPS:=-1}" # as the epochs say
: "${LEARNING_RATE:=1e-2}"
: "${MIN_LR:=1e-3}"
: "${MINIBATCH_SIZE:=4096}"
: "${SAVE_CHECKPOINT_PER_STEP:=100}"
set +a
exec bash "$(dirname "$0")/examples/pretrain_stg1.sh" "$@"
