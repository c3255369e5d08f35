#!/usr/bin/env bash
# Mix the sft sources into shuffled shards: cd data && bash prepare_sft.sh. Every variable can be set in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${CONFIG:=configs/sft.json}"
: "${BASE_DIR:=.}"
: "${OUTPUT_DIR:=$BASE_DIR/output/split_data_sft}"
: "${SEED:=42}"
: "${BUFFER_MB:=1024}"
# Every rule of the format, SIDs inside their codebooks included where the specification is at hand.
: "${SID_SPEC:=$BASE_DIR/output/benchmark_data/sid_spec.json}"
spec=()
[[ -f "$SID_SPEC" ]] && spec=(--sid_spec "$SID_SPEC")
set -x
"$PYTHON" prepare_mix.py --config "$CONFIG" --base_dir "$BASE_DIR" --output_dir "$OUTPUT_DIR" --seed "$SEED" --buffer_mb "$BUFFER_MB"
"$PYTHON" validate.py "$OUTPUT_DIR" "${spec[@]}"
