#!/usr/bin/env bash
# One table for every question of ablations.json:
#   bash scripts/recipes/ablations.sh <recipe> <its folder> [ablations.py's flags]
#   bash scripts/recipes/ablations.sh amazon_beauty data/beauty_sids --tables dropout decoding
#   ABLATION_RUNS   folder of the runs (runs/ablations/<recipe>); a second run goes on where the first stopped
# The variants' settings: ablations.json; all others as the recipe's profile, or --set <stage>.<NAME>=<value> says.
source "$(dirname "$0")/common.sh"
argument "${1:-}" "ablations.sh: needs a recipe; amazon_beauty or movielens100k"
argument "${2:-}" "ablations.sh: needs the data folder of the recipe; bash scripts/recipes/ablations.sh $1 <folder>"
recipe="$1" folder="$(from_caller "$2")" runs="runs/ablations/$1"
[[ -z "${ABLATION_RUNS:-}" ]] || runs="$(from_caller "$ABLATION_RUNS")"
export VENV
bash scripts/install.sh
export PATH="$VENV/bin:$PATH"
command=(python scripts/recipes/ablations.py --recipe "$recipe" --folder "$folder"
  --output_dir "$runs" "${@:3}")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
exec "${command[@]}"
