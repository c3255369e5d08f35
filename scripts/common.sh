# Sourced by the numbered scripts and the quickstart: where a run lives, its settings, and how a command is printed.
#   RUN_DIR  the folder that everything of a run goes into   (runs/quickstart)
#   PROFILE  a folder of scripts/profiles, a file a stage    (quick)
#   SEED     seed of the world and of every stage            (0)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
source "$ROOT/scripts/argument.sh"
source "$ROOT/scripts/owned.sh"
: "${VENV:=$ROOT/.venv}"
: "${PROFILE:=quick}"
: "${SEED:=0}"
: "${RUN_DIR:=$ROOT/runs/quickstart}"
if ! mkdir -p "$RUN_DIR" 2> /dev/null || [[ ! -w "$RUN_DIR" ]]; then
  echo "error: $RUN_DIR: cannot be written, or is no folder; give a RUN_DIR (--run_dir) that this user may write" >&2
  exit 2
fi
RUN_DIR="$(cd "$RUN_DIR" && pwd)"
[[ -x "$VENV/bin/python" ]] && export PATH="$VENV/bin:$PATH"
export PROFILE RUN_DIR SEED HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

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

# settings_of <stage>: export what the profile (and --set) says of a stage; the environment goes before it.
settings_of() {
  local lines
  lines="$(python3 "$ROOT/scripts/settings.py" export "$PROFILE" "$1")" || exit
  eval "$lines"
}

# profile_file <name>: a file of the profile that is no list of settings, its own or that of the profile it builds on.
profile_file() {
  python3 "$ROOT/scripts/settings.py" file "$PROFILE" "$1"
}

# first_of <folder …>: the first that is there, for a stage that may be left out; where none is, the first.
first_of() {
  local folder
  for folder in "$@"; do
    if [[ -d "$folder" ]]; then echo "$folder" && return; fi
  done
  echo "$1"
}

# validation_data: the validation targets as benchmark files, once a run, in $RUN_DIR/validation.
validation_data() {
  local items="$RAW_DATA/onerec_data"
  [[ -f "$RUN_DIR/validation/manifest.json" ]] && return
  settings_of data # the words of the prompts and the layout are those of stage 3
  run python "$ROOT/data/onerec_data/run.py" \
    --input "$items/onerec_bench_release.parquet" --pid2sid "$items/video_ad_pid2sid.parquet" \
    --caption "$items/pid2caption.parquet" --output_dir "$RUN_DIR/validation" --tasks --benchmark_split 2
}

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
