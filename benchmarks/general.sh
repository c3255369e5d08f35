#!/usr/bin/env bash
# General ability before and after: bash general.sh <name>=<model_path> [<name>=<model_path> …]
#   Exact match and bits per byte on the project's held-out text of BENCHMARK_DATA_DIR; and the tasks of GENERAL_TASKS
#   by lm-evaluation-harness (pip install lm-eval) as far as it is installed and their data are at hand.
#   GENERAL_TASKS     gsm8k,mmlu,gsm8k_local,… (none)
#   GENERAL_TASK_DIR  folder of task YAMLs whose data are local files (harness/, which has gsm8k_local)
#   GENERAL_DATA_DIR  what those files are relative to (the folder that the command is given in)
#   SAMPLE_SIZE       questions a task (-1: all)
# BENCHMARK_DATA_DIR, DATA_VERSION, BENCHMARK_BASE_DIR and VERSION: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$ROOT/scripts/argument.sh"
argument "${1:-}" "general.sh: needs a model; bash general.sh <name>=<model_path> [<name>=<model_path> …]"
command=("$PYTHON" "$ROOT/benchmarks/general.py" --models "$@" --data_dir "$data_dir"
  --output_dir "$BENCHMARK_BASE_DIR/general/$VERSION")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
"${command[@]}"
