#!/usr/bin/env bash
# Make the base LLM of a small world: a tiny random Qwen3, then a few minutes of general text, plain and chat.
#   RAW_DATA    the raw_data folder with general_text/ and onerec_data/   (../data/raw_data, or the root's)
#   PROMPTS     prompt templates that the tokenizer should cover          (../data/onerec_data/prompts, where it exists)
#   TINY_DIR    where the untrained model goes                            (models/tiny)
#   HIDDEN_SIZE NUM_HIDDEN_LAYERS VOCAB_SIZE …   its shape: flags of make_tiny_qwen3.py
#                                                (128 wide, 4 layers, 2,048 BPE tokens)
#   OUTPUT_DIR  the training run; the base LLM is OUTPUT_DIR/hf           (output/base)
# Flags of train.py are variables too, as its --help says, or follow here.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
: "${RAW_DATA:=$(raw_data "$ROOT/data")}"
: "${PROMPTS:=../data/onerec_data/prompts}"
: "${TINY_DIR:=models/tiny}"
set -a # Python reads these
: "${OUTPUT_DIR:=output/base}"
: "${DATASET_CONFIG:=examples/dataset_config/toy_general.json}"
: "${SOURCES:=$RAW_DATA/general_text/pretrain,$RAW_DATA/general_text/sft}"
: "${LEARNING_RATE:=4e-3}"
: "${LOGGING_PER_STEP:=10}"
: "${SAVE_CHECKPOINT_PER_STEP:=100}"
: "${SEED:=19260817}"
set +a

cd "$(dirname "$0")/.."
source scripts/common.sh
corpus=("$RAW_DATA/general_text/pretrain" "$RAW_DATA/general_text/sft")
for path in "$RAW_DATA"/onerec_data/*pid2caption.parquet "$PROMPTS"; do
  if [[ -e "$path" ]]; then corpus+=("$path"); fi
done
run "$PYTHON" make_tiny_qwen3.py --corpus "${corpus[@]}" --output_dir "$TINY_DIR"
train --model_dir "$TINY_DIR" "$@"
