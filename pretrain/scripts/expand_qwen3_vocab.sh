#!/usr/bin/env bash
# Give a Qwen3 checkpoint the itemic tokens.
#   HF_MODEL_DIR OUTPUT_MODEL_DIR   the checkpoint, and where the expanded one goes
#   ITEMIC_LAYER_N VOCAB_SIZE_PER_LAYER   layers and codes a layer, or
#   SID_SPEC   the item tokenizer's sid_spec.json (or its folder), which says both
#   INIT SEED  how new rows begin (mean, normal, codebook), and the seed of their noise
#   CODEBOOK   for INIT=codebook: the item tokenizer's model.pt (or its folder)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
: "${HF_MODEL_DIR:=models/Qwen3-1.7B}"
: "${OUTPUT_MODEL_DIR:=${HF_MODEL_DIR}_itemic}"
: "${ITEMIC_LAYER_N:=3}"
: "${VOCAB_SIZE_PER_LAYER:=8192}"
: "${SID_SPEC:=}"
: "${INIT:=mean}"
: "${CODEBOOK:=}"
: "${SEED:=0}"

cd "$(dirname "$0")/.."
source scripts/common.sh
if [[ -n "$SID_SPEC" ]]; then
  codebooks=(--sid_spec "$SID_SPEC")
else
  codebooks=(--itemic_layer_n "$ITEMIC_LAYER_N" --vocab_size_per_layer "$VOCAB_SIZE_PER_LAYER")
fi
[[ -n "$CODEBOOK" ]] && codebooks+=(--codebook "$CODEBOOK")
run "$PYTHON" expand_vocab.py --hf_model_dir "$HF_MODEL_DIR" --output_model_dir "$OUTPUT_MODEL_DIR" \
  "${codebooks[@]}" --init "$INIT" --seed "$SEED" "$@"
