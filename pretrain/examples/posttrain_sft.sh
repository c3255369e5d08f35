#!/usr/bin/env bash
# SFT: every parameter, instructions of all tasks with general chat, loss on the answers. The paper's settings for Qwen3-1.7B.
# One node: bash examples/posttrain_sft.sh with NPROC=8. Several: the same on each, with NNODES NODE_RANK MASTER_ADDR.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
: "${MODEL_DIR:=output/stg2/hf}"
: "${OUTPUT_DIR:=output/sft}"
: "${TOKEN_DIR=$OUTPUT_DIR/tokens}" # empty: each process keeps the tokens in memory
: "${DATASET_CONFIG:=examples/dataset_config/sft.json}"
: "${LEARNING_RATE:=2e-4}"
: "${MIN_LR:=1e-4}"
: "${WEIGHT_DECAY:=0.1}"
: "${LR_SCHEDULER_TYPE:=cosine}"
: "${NUM_WARMUP_STEPS:=-1}" # a tenth of the steps
: "${NUM_TRAINING_STEPS:=5000}"
: "${GRADIENT_ACCUMULATION_STEPS:=1}"
: "${MINIBATCH_SIZE:=16384}"
: "${LOGGING_PER_STEP:=5}"
: "${SAVE_CHECKPOINT_PER_STEP:=500}"
: "${SEED:=19260817}"

cd "$(dirname "$0")/.."
source scripts/common.sh
train_flags
launch train.py "${FLAGS[@]}" "$@"
