#!/usr/bin/env bash
# Evaluate a checkpoint:
#   cd benchmarks && bash eval_script.sh <model_path> <result_name> <enable_thinking> [evaluate.py's flags]
# BENCHMARK_DATA_DIR, DATA_VERSION, BENCHMARK_BASE_DIR and VERSION: see common.sh.
# Often used flags: --tasks video ad, --sample_size 1000, --judge gemini.
# The log holds the configuration, one line a task and the table; progress goes to the terminal, errors to both.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
if (($# < 3)); then
  echo "error: eval_script.sh: needs three arguments; bash eval_script.sh <model_path> <result_name> <enable_thinking: true or false>" >&2
  exit 2
fi
if [[ -z "$2" || "$2" == */* ]]; then
  echo "error: <result_name>: is ${2:-empty}; give a name without /" >&2
  exit 2
fi
log="$BENCHMARK_BASE_DIR/auto_eval_logs/$VERSION/$2.log"
mkdir -p "$(dirname "$log")"
command=("$PYTHON" "$ROOT/benchmarks/evaluate.py" --model_path "$1" --result_name "$2" --enable_thinking "$3"
  --data_dir "$data_dir" --data_version "$DATA_VERSION"
  --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" "${@:4}")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")" | tee "$log"
problems="$(mktemp)"
trap 'rm -f "$problems"' EXIT
exec 3> >(tee -i "$problems" >&2)
tee_pid=$!
exec 4> >(tee -ai "$log")
log_pid=$!
# In the background, so that a signal to this shell can be passed on; the evaluation then ends with 75.
trap '[[ $! != "$log_pid" ]] || exit 75; kill -TERM $! 2> /dev/null || true' TERM HUP INT
"${command[@]}" >&4 2>&3 &
run=$!
while kill -0 "$run" 2> /dev/null; do # a signal ends the wait, not the evaluation
  wait "$run" || true
done
status=0
wait "$run" || status=$? # the evaluation's own, which bash keeps
exec 3>&- 4>&-
wait "$tee_pid" "$log_pid"
if ((status)); then
  grep '^error' "$problems" >> "$log" || tail -n 20 "$problems" >> "$log"
fi
exit "$status"
