#!/usr/bin/env bash
# Prompts for on-policy distillation: cd data && bash prepare_distillation.sh
#   BASE_DIR     folder with raw_data/ and output/                                (data/)
#   INPUT        general text: files, folders or patterns                         (raw_data/general_text/sft)
#   TEXT_INPUT   plain text beside it, whose beginnings become prompts            (none)
#   PROMPTS      the words that ask for the rest of a plain text: zh, en, or a JSON file  (zh)
#   OUTPUT_FILE  where to                                                         (output/onpolicy_distillation.parquet)
#   NUM_SAMPLES MAX_PER_SOURCE SEED   prompts in all, of one source at most (-1: all)  (200000 -1 42)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
if [[ -z "${INPUT:-}" ]]; then
  INPUT="$(raw_data "$BASE_DIR")/general_text/sft"
  if [[ -n "${TEXT_INPUT:-}" && ! -e "$INPUT" ]]; then
    echo "left out: general_chat (no $INPUT)"
    INPUT=""
  fi
fi
: "${OUTPUT_FILE:=$BASE_DIR/output/onpolicy_distillation.parquet}"
set -x
"$PYTHON" prepare_distillation.py --input ${INPUT:+"$INPUT"} ${TEXT_INPUT:+"$TEXT_INPUT"} --output "$OUTPUT_FILE"
"$PYTHON" validate.py "$OUTPUT_FILE"
