#!/usr/bin/env bash
# Make the base LLM of a small world: a tiny random Qwen3, then a few minutes of general text, plain and chat.
#   RAW_DATA    the raw_data folder with general_text/ and onerec_data/     (../data/raw_data, or the root's)
#   PROMPTS     prompt templates that the tokenizer should cover            (../data/onerec_data/prompts, where it exists)
#   TINY_DIR    where the untrained model goes                              (models/tiny)
#   TINY_ARGS   its size: flags of make_tiny_qwen3.py                       (none: 128 wide, 4 layers, 2,048 BPE tokens)
#   OUTPUT_DIR  the training run; the base LLM is OUTPUT_DIR/hf             (output/base)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
: "${RAW_DATA:=$(raw_data "$ROOT/data")}"
: "${PROMPTS:=../data/onerec_data/prompts}"
: "${TINY_DIR:=models/tiny}"
: "${TINY_ARGS:=}"
: "${OUTPUT_DIR:=output/base}"
: "${DATASET_CONFIG:=examples/dataset_config/toy_general.json}"
: "${SOURCES:=$RAW_DATA/general_text/pretrain,$RAW_DATA/general_text/sft}"
: "${LEARNING_RATE:=4e-3}"
: "${MIN_LR:=-1}"
: "${WEIGHT_DECAY:=0.1}"
: "${LR_SCHEDULER_TYPE:=cosine}"
: "${NUM_WARMUP_STEPS:=-1}"
: "${NUM_TRAINING_STEPS:=-1}"
: "${GRADIENT_ACCUMULATION_STEPS:=1}"
: "${MINIBATCH_SIZE:=4096}"
: "${LOGGING_PER_STEP:=10}"
: "${SAVE_CHECKPOINT_PER_STEP:=100}"
: "${SEED:=19260817}"

cd "$(dirname "$0")/.."
source scripts/common.sh
corpus=("$RAW_DATA/general_text/pretrain" "$RAW_DATA/general_text/sft")
for path in "$RAW_DATA"/onerec_data/*pid2caption.parquet "$PROMPTS"; do
  if [[ -e "$path" ]]; then corpus+=("$path"); fi
done
read -r -a tiny_args <<< "$TINY_ARGS" || true
run "$PYTHON" make_tiny_qwen3.py --corpus "${corpus[@]}" --output_dir "$TINY_DIR" --seed "$SEED" "${tiny_args[@]}"
MODEL_DIR="$TINY_DIR"
train_flags
launch train.py "${FLAGS[@]}" "$@"
