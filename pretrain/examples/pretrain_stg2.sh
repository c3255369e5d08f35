#!/usr/bin/env bash
# Stage 2, co-pretraining: every parameter, recommendation data and general text mixed. Settings: the paper's (1.7B).
# One node: bash examples/pretrain_stg2.sh with NPROC=8. Several: the same on each, with NNODES NODE_RANK MASTER_ADDR.
# Flags of train.py are variables too, as its --help says (LEARNING_RATE, SOURCES, MAX_LENGTH, …), or follow here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
set -a # Python reads these
: "${MODEL_DIR:=output/stg1/hf}"
: "${OUTPUT_DIR:=output/stg2}"
: "${TOKEN_DIR=$OUTPUT_DIR/tokens}" # empty: each process keeps the tokens in memory
: "${DATASET_CONFIG:=examples/dataset_config/pretrain.json}"
: "${MIN_LR:=1e-4}" # of a LEARNING_RATE of 2e-4
: "${NUM_TRAINING_STEPS:=5000}"
: "${MINIBATCH_SIZE:=16384}" # positions whose logits exist at a time
set +a

cd "$(dirname "$0")/.."
source scripts/common.sh
train "$@"
