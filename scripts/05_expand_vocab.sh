#!/usr/bin/env bash
# 5. The catalogue's itemic tokens into the base model's vocabulary.
source "$(dirname "$0")/common.sh"
codebook=""
[[ "$ITEMIC_INIT" == codebook ]] && codebook="$TOKENIZER_DIR"
HF_MODEL_DIR="${HF_MODEL_DIR:-$MODELS/base/hf}" OUTPUT_MODEL_DIR="$MODELS/base_itemic" SID_SPEC="$RAW_DATA/onerec_data/sid_spec.json" \
  INIT="$ITEMIC_INIT" CODEBOOK="$codebook" SEED="${SEED:-0}" become bash "$ROOT/pretrain/scripts/expand_qwen3_vocab.sh"
