#!/usr/bin/env bash
# RL data of the recommendation tasks: cd data && bash prepare_rl.sh
#   INPUT_DIR OUTPUT_DIR  the records of run.sh, and where to  (output output/rl_data, both of BASE_DIR)
#   TASKS        those to take, by their short names            (all that have records)
#   TEST_SIZE    test rows a task                              (1000)
#   USER_SHARE   share of the users whose rows RL takes, with its test users; exclude_users of a mix leaves them out (1)
#   SEED         of the choice of users                        (42)
#   SID_SPEC     checks SIDs against their codebooks, where there is such a file
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${BASE_DIR:=.}"
set -a # Python reads these
: "${INPUT_DIR:=$BASE_DIR/output}"
: "${OUTPUT_DIR:=$BASE_DIR/output/rl_data}"
: "${SID_SPEC:=$INPUT_DIR/benchmark_data/sid_spec.json}"
[[ -f "$SID_SPEC" ]] || SID_SPEC=""
set +a
set -x
"$PYTHON" prepare_rl.py ${TASKS:+--tasks ${TASKS//,/ }}
"$PYTHON" validate.py "$OUTPUT_DIR/train.parquet" "$OUTPUT_DIR/test.parquet"
