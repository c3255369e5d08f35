#!/usr/bin/env bash
# Evaluate a checkpoint: cd benchmarks && bash eval_script.sh <model_path> <result_name> <enable_thinking> [evaluate.py's flags]
#   BENCHMARK_DATA_DIR  benchmark_data folder of the data stage (../data/output/benchmark_data)
#   BENCHMARK_BASE_DIR  where auto_eval_logs/ and results/ go (this folder)
#   VERSION             version of the results (v1.0); DATA_VERSION  subfolder of the data, where there are several
set -euo pipefail
if (($# < 3)); then
  echo "error: eval_script.sh: needs three arguments; bash eval_script.sh <model_path> <result_name> <enable_thinking: true or false>" >&2
  exit 2
fi
here="$(cd "$(dirname "$0")" && pwd)"
: "${PYTHON:=python}"
: "${BENCHMARK_BASE_DIR:=$here}"
: "${BENCHMARK_DATA_DIR:=$here/../data/output/benchmark_data}"
: "${DATA_VERSION:=}"
: "${VERSION:=v1.0}"
log="$BENCHMARK_BASE_DIR/auto_eval_logs/$VERSION/$2.log"
mkdir -p "$(dirname "$log")"
command=("$PYTHON" "$here/evaluate.py" --model_path "$1" --result_name "$2" --enable_thinking "$3"
  --data_dir "$BENCHMARK_DATA_DIR${DATA_VERSION:+/$DATA_VERSION}" --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" "${@:4}")
{
  printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
  "${command[@]}"
} 2>&1 | tee "$log"
