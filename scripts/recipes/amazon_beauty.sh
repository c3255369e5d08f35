#!/usr/bin/env bash
# Amazon 2014 Beauty with published content codes, leave one out, the whole catalogue ranked:
#   bash scripts/recipes/amazon_beauty.sh <folder> [quickstart's flags]
#   <folder>   with inter.json (user to items in time order) and index_rqkmeans.json (item to content codes), as
#              published by github.com/NonameUntitled/tiger
# Settings: scripts/profiles/amazon_beauty/. SEEDS="0 1 2", RUNS=runs/amazon_beauty; see recipes/common.sh.
source "$(dirname "$0")/common.sh"
data_path "${1:-}" "amazon_beauty.sh: needs a folder; the one with inter.json and index_rqkmeans.json"
data="$(from_caller "$1")"
: "${RUNS:=runs/amazon_beauty}"
: "${AMAZON_SEQUENCES:=$data/inter.json}"
: "${SID_CODES:=$data/index_rqkmeans.json}"
folder="the folder that holds it as its first argument"
need amazon_beauty "$AMAZON_SEQUENCES" "$folder"
need amazon_beauty "$SID_CODES" "$folder"
export AMAZON_SEQUENCES SID_CODES PROFILE="${PROFILE:-amazon_beauty}"
every_seed beauty "${@:2}"
