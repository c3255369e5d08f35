#!/usr/bin/env bash
# Mix the sft sources into shuffled shards: cd data && bash prepare_sft.sh. Every variable can be set in the environment.
set -euo pipefail
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${CONFIG:=configs/sft.json}"
: "${BASE_DIR:=.}"
: "${OUTPUT_DIR:=$BASE_DIR/output/split_data_sft}"
: "${SEED:=42}"
set -x
"$PYTHON" prepare_mix.py --config "$CONFIG" --base_dir "$BASE_DIR" --output_dir "$OUTPUT_DIR" --seed "$SEED"
