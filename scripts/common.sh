# Sourced by the numbered scripts and the quickstart: where a run lives, its settings, and how a command is printed.
#   RUN_DIR  the folder that everything of a run goes into   (runs/quickstart)
#   PROFILE  the settings of scripts/profiles/<PROFILE>.env  (laptop); each of them can be set in the environment
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
source "$ROOT/scripts/argument.sh"
source "$ROOT/scripts/owned.sh"
: "${VENV:=$ROOT/.venv}"
: "${PROFILE:=laptop}"
: "${RUN_DIR:=$ROOT/runs/quickstart}"
if ! mkdir -p "$RUN_DIR" 2> /dev/null || [[ ! -w "$RUN_DIR" ]]; then
  echo "error: $RUN_DIR: cannot be written, or is no folder; give a RUN_DIR (--run_dir) that this user may write" >&2
  exit 2
fi
RUN_DIR="$(cd "$RUN_DIR" && pwd)"
[[ -x "$VENV/bin/python" ]] && export PATH="$VENV/bin:$PATH"
if [[ ! -f "$ROOT/scripts/profiles/$PROFILE.env" ]]; then
  echo "error: scripts/profiles/$PROFILE.env: no such file; PROFILE is one of $(cd "$ROOT/scripts/profiles" && echo *.env | sed 's/\.env//g')" >&2
  exit 2
fi
set -a
source "$ROOT/scripts/profiles/$PROFILE.env"
set +a
export PROFILE RUN_DIR HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# Idle OpenMP threads sleep instead of spinning: on shared cores spinning costs several times the work itself.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

# Where the stages of this run put their outputs; the numbered scripts and the report read them here only.
RAW_DATA="$RUN_DIR/raw_data"
TOKENIZER_DIR="$RUN_DIR/tokenizer"
DATA_OUTPUT="$RUN_DIR/output"
MODELS="$RUN_DIR/models"
BENCHMARK_DATA_DIR="$DATA_OUTPUT/benchmark_data"
BENCHMARK_BASE_DIR="$RUN_DIR/benchmarks"
export BENCHMARK_DATA_DIR BENCHMARK_BASE_DIR
# What stage 2 and SFT begin from: a stage of 0 steps is left out.
STG2_FROM="$MODELS/stage1/hf"
((STG1_STEPS)) || STG2_FROM="$MODELS/base_itemic"
SFT_FROM="$MODELS/stage2/hf"
((STG2_STEPS)) || SFT_FROM="$STG2_FROM"

# run <command …>: print the command, then run it; a signal to the script ends both.
run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  owned "$@"
}

# become <command …>: print the command, then be it, so that a signal to the script reaches it; for the last one.
become() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  exec "$@"
}
