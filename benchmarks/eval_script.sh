#!/usr/bin/env bash
# Evaluate a checkpoint: cd benchmarks && bash eval_script.sh <model_path> <result_name> <enable_thinking> [evaluate.py's flags]
#   BENCHMARK_DATA_DIR  benchmark_data folder of the data stage or of the release (../data/output/benchmark_data)
#   BENCHMARK_BASE_DIR  where auto_eval_logs/ and results/ go (this folder)
#   VERSION             version of the results (v1.0); DATA_VERSION  subfolder of the data, where there are several
# Often used flags: --tasks video ad, --sample_size 1000, --judge gemini.
# The log holds the configuration, one line a task and the table; progress goes to the terminal, errors to both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
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
  --data_dir "$BENCHMARK_DATA_DIR${DATA_VERSION:+/$DATA_VERSION}" --data_version "$DATA_VERSION"
  --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" "${@:4}")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")" | tee "$log"
problems="$(mktemp)"
trap 'rm -f "$problems"' EXIT
exec 3> >(tee "$problems" >&2)
tee_pid=$!
status=0
"${command[@]}" 2>&3 | tee -a "$log" || status=$?
exec 3>&-
wait "$tee_pid"
if ((status)); then
  grep '^error' "$problems" >> "$log" || tail -n 20 "$problems" >> "$log"
fi
exit "$status"
