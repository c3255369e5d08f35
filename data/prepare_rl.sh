#!/usr/bin/env bash
# RL data of the five recommendation tasks: cd data && bash prepare_rl.sh. Every variable can be set in the environment.
set -euo pipefail
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
: "${INPUT_DIR:=$BASE_DIR/output}"
: "${OUTPUT_DIR:=$BASE_DIR/output/rl_data}"
: "${TEST_SIZE:=1000}"
: "${SEED:=42}"
# Fewer where the logs lack a domain, as TASKS="video label_cond interactive".
: "${TASKS:=video ad product label_cond interactive}"
set -x
"$PYTHON" prepare_rl.py --input_dir "$INPUT_DIR" --output_dir "$OUTPUT_DIR" --test_size "$TEST_SIZE" --seed "$SEED" --tasks $TASKS
