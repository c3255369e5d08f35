#!/usr/bin/env bash
# MovieLens 100k, leave one out:
#   bash scripts/recipes/movielens100k.sh <folder with ml-100k.inter or u.data> [quickstart's flags]
# Settings: scripts/profiles/movielens100k/. SEEDS="0 1 2", RUNS=runs/movielens100k; see recipes/common.sh.
source "$(dirname "$0")/common.sh"
data_path "${1:-}" "movielens100k.sh: needs a folder; the one with ml-100k.inter or u.data"
data="$(from_caller "$1")"
if [[ ! -d "$data" ]]; then
  echo "error: $data: no such folder; the one with ml-100k.inter or u.data" >&2
  exit 2
fi
export PROFILE="${PROFILE:-movielens100k}"
every_seed movielens100k --movielens "$data" "${@:2}"
