#!/usr/bin/env bash
# Mix the pretrain sources into shuffled shards: cd data && bash prepare_pretrain.sh. Every variable can be set in the environment.
set -euo pipefail
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${CONFIG:=configs/pretrain.json}"
: "${BASE_DIR:=.}"
: "${OUTPUT_DIR:=$BASE_DIR/output/split_data_pretrain}"
: "${SEED:=42}"
set -x
"$PYTHON" prepare_mix.py --config "$CONFIG" --base_dir "$BASE_DIR" --output_dir "$OUTPUT_DIR" --seed "$SEED"
