#!/usr/bin/env bash
# 5. The catalogue's itemic tokens into the base model's vocabulary. Settings: the profile's base.env.
#   HF_MODEL_DIR   the base model's folder, an absolute path  (step 4's)
#   INIT   how itemic rows begin: mean, normal, codebook (from the item tokenizer)  (mean)
source "$(dirname "$0")/common.sh"
settings_of base
: "${HF_MODEL_DIR:=$MODELS/base/hf}"
codebook=""
[[ "${INIT:=mean}" == codebook ]] && codebook="$TOKENIZER_DIR"
export HF_MODEL_DIR INIT
OUTPUT_MODEL_DIR="$MODELS/base_itemic" SID_SPEC="$RAW_DATA/onerec_data/sid_spec.json" CODEBOOK="$codebook" \
  become bash "$ROOT/pretrain/scripts/expand_qwen3_vocab.sh"
