#!/usr/bin/env bash
# Amazon 2014, any category, or any shop's sequences in the same files; leave one out, the whole catalogue ranked:
#   bash scripts/recipes/amazon.sh <sequences> [attributes] [quickstart's flags]
#   <sequences>    a user a line: user, items in time order, as published by github.com/aHuiWang/CIKM2020-S3Rec; or JSON,
#                  user to items
#   [attributes]   JSON, item to attribute ids, as published there; without it an item is who takes it
# Settings: scripts/profiles/amazon/. SEEDS="0 1 2", RUNS=runs/<the name of the sequences in small letters>; see recipes/common.sh.
source "$(dirname "$0")/common.sh"
data_path "${1:-}" "amazon.sh: needs a file of sequences; amazon.sh Beauty.txt Beauty_item2attributes.json"
AMAZON_SEQUENCES="$(from_caller "$1")"
need amazon "$AMAZON_SEQUENCES" "a file of sequences as its first argument"
shift
AMAZON_ATTRIBUTES="" text=(--set tokenizer.ENCODER=none)
if [[ -n "${1:-}" && "$1" != --* ]]; then
  AMAZON_ATTRIBUTES="$(from_caller "$1")" text=()
  need amazon "$AMAZON_ATTRIBUTES" "a JSON file of attributes as its second argument, or none"
  shift
fi
export AMAZON_SEQUENCES AMAZON_ATTRIBUTES PROFILE="${PROFILE:-amazon}"
name="$(basename "$AMAZON_SEQUENCES")"
every_seed "$(tr '[:upper:]' '[:lower:]' <<< "${name%.*}")" ${text[@]+"${text[@]}"} "$@"
