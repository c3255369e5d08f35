#!/usr/bin/env bash
# Prompts for on-policy distillation: cd data && bash prepare_distillation.sh. Every variable can be set in the environment.
set -euo pipefail
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
: "${INPUT:=$BASE_DIR/raw_data/general_text/sft}"
: "${OUTPUT_FILE:=$BASE_DIR/output/onpolicy_distillation.parquet}"
: "${NUM_SAMPLES:=200000}"
: "${SEED:=42}"
set -x
"$PYTHON" prepare_distillation.py --input "$INPUT" --output "$OUTPUT_FILE" --num_samples "$NUM_SAMPLES" --seed "$SEED"
"$PYTHON" validate.py "$OUTPUT_FILE"
