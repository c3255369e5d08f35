# Sourced by the recipes: the same chain for every seed, then one table over the seeds.
#   SEEDS    seeds, one run each                       (0 1 2)
#   RUNS     folder of the runs, seed<k>/ in it        (runs/<data set> of this clone)
#   RL       1: distillation and GRPO too, as --rl     (0)
# Settings: the profile, and --set <stage>.<NAME>=<value> as for the quickstart.
set -euo pipefail
caller="$PWD"
source "$(dirname "${BASH_SOURCE[0]}")/../entry.sh"
cd "$ROOT"
source scripts/argument.sh
source scripts/owned.sh
: "${VENV:=$PWD/.venv}"
: "${SEEDS:=0 1 2}"
export RL="${RL:-0}"

# from_caller <path>: from where the user is, as the quickstart takes it.
from_caller() { (cd "$caller" && realpath -m -- "$1"); }
[[ -z "${RUNS:-}" ]] || RUNS="$(from_caller "$RUNS")"

# data_path <argument> <message>: stop where the first argument is missing, or is a flag already.
data_path() {
  if [[ "$1" == --* ]]; then argument "" "$2"; fi
  argument "$1" "$2"
}

# need <recipe> <file> <what is wanted>: stop where a data file is not there.
need() {
  if [[ ! -f "$2" ]]; then
    echo "error: $2: no such file; $1.sh wants $3" >&2
    exit 2
  fi
}

# every_seed <data set> [quickstart's flags]: run the chain once a seed, then the table.
every_seed() {
  local data_set="$1" seed runs=()
  shift
  : "${RUNS:=runs/$data_set}"
  for seed in $SEEDS; do
    owned bash scripts/quickstart.sh --seed "$seed" --run_dir "$RUNS/seed$seed" "$@"
    runs+=("$RUNS/seed$seed")
  done
  [[ -x "$VENV/bin/python" ]] && export PATH="$VENV/bin:$PATH"
  python benchmarks/seeds.py --runs "${runs[@]}" --published scripts/recipes/published.json --data_set "$data_set" --output_dir "$RUNS"
}
