#!/usr/bin/env bash
# Give a Qwen3 checkpoint the itemic tokens.
#   HF_MODEL_DIR OUTPUT_MODEL_DIR   the checkpoint, and where the expanded one goes
#                                   (models/Qwen3-1.7B, the same with _itemic)
#   ITEMIC_LAYER_N VOCAB_SIZE_PER_LAYER   layers and codes a layer, or               (3 8192)
#   SID_SPEC   the item tokenizer's sid_spec.json (or its folder), which says both
#   INIT SEED  how new rows begin (mean, normal, codebook), and the seed of their noise   (mean 0)
#   CODEBOOK   for INIT=codebook: the item tokenizer's model.pt (or its folder)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
export HF_MODEL_DIR="${HF_MODEL_DIR:-models/Qwen3-1.7B}"
export OUTPUT_MODEL_DIR="${OUTPUT_MODEL_DIR:-${HF_MODEL_DIR}_itemic}"

cd "$(dirname "$0")/.."
source scripts/common.sh
run "$PYTHON" expand_vocab.py "$@"
