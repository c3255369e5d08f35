#!/usr/bin/env bash
# Prompts for on-policy distillation: cd data && bash prepare_distillation.sh. Every variable can be set in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
: "${INPUT:=$(raw_data "$BASE_DIR")/general_text/sft}"
: "${TEXT_INPUT:=}" # plain text beside it, whose beginnings become prompts (raw_data/general_text/pretrain)
: "${OUTPUT_FILE:=$BASE_DIR/output/onpolicy_distillation.parquet}"
: "${NUM_SAMPLES:=200000}"
: "${MAX_PER_SOURCE:=-1}" # prompts of one source at most; -1: all
: "${SEED:=42}"
set -x
"$PYTHON" prepare_distillation.py --input "$INPUT" ${TEXT_INPUT:+"$TEXT_INPUT"} --output "$OUTPUT_FILE" --num_samples "$NUM_SAMPLES" --max_per_source "$MAX_PER_SOURCE" --seed "$SEED"
"$PYTHON" validate.py "$OUTPUT_FILE"
