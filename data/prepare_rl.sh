#!/usr/bin/env bash
# RL data of the recommendation tasks: cd data && bash prepare_rl.sh. Every variable can be set in the environment.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
: "${INPUT_DIR:=$BASE_DIR/output}"
: "${OUTPUT_DIR:=$BASE_DIR/output/rl_data}"
: "${TEST_SIZE:=1000}"
# Share of the users whose rows RL takes, its test users included; a mix with exclude_users can leave them all out.
: "${USER_SHARE:=1}"
: "${SEED:=42}"
: "${TASKS:=}" # those to take, by their short names; empty: all that have records
# The format, SIDs inside their codebooks where the specification is at hand, and no user on both sides.
: "${SID_SPEC:=$INPUT_DIR/benchmark_data/sid_spec.json}"
spec=()
[[ -f "$SID_SPEC" ]] && spec=(--sid_spec "$SID_SPEC")
set -x
"$PYTHON" prepare_rl.py --input_dir "$INPUT_DIR" --output_dir "$OUTPUT_DIR" --test_size "$TEST_SIZE" --user_share "$USER_SHARE" --seed "$SEED" ${TASKS:+--tasks $TASKS}
"$PYTHON" validate.py "$OUTPUT_DIR/train.parquet" "$OUTPUT_DIR/test.parquet" "${spec[@]}"
