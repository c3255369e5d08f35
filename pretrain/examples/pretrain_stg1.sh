#!/usr/bin/env bash
# Stage 1, itemic-text alignment: the LLM frozen, itemic rows trained alone. The paper's settings for Qwen3-1.7B.
# One node: bash examples/pretrain_stg1.sh with NPROC=8. Several: the same on each, with NNODES NODE_RANK MASTER_ADDR.
# Flags of train.py are variables too, as its --help says (LEARNING_RATE, SOURCES, MAX_LENGTH, …), or follow here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
set -a # Python reads these
: "${MODEL_DIR:=models/Qwen3-1.7B_itemic}"
: "${OUTPUT_DIR:=output/stg1}"
: "${TOKEN_DIR=$OUTPUT_DIR/tokens}" # empty: each process keeps the tokens in memory
: "${DATASET_CONFIG:=examples/dataset_config/stg1.json}"
: "${MIN_LR:=1e-4}" # of a LEARNING_RATE of 2e-4
: "${NUM_TRAINING_STEPS:=2000}"
: "${MINIBATCH_SIZE:=16384}" # positions whose logits exist at a time
set +a

cd "$(dirname "$0")/.."
source scripts/common.sh
train --freeze_llm "$@"
