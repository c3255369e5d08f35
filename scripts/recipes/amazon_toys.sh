#!/usr/bin/env bash
# Amazon 2014 Toys and Games, leave one out, the whole catalogue ranked:
#   bash scripts/recipes/amazon_toys.sh <folder> [quickstart's flags]
#   <folder>   with Toys_and_Games.txt (a user a line: user, items in time order) and
#              Toys_and_Games_item2attributes.json, as published by github.com/aHuiWang/CIKM2020-S3Rec
# Settings: scripts/profiles/amazon_toys/. SEEDS="0 1 2", RUNS=runs/amazon_toys; see recipes/common.sh.
source "$(dirname "$0")/common.sh"
argument "${1:-}" "amazon_toys.sh: needs a folder; the one with Toys_and_Games.txt"
data="$(realpath -m "$1")"
: "${AMAZON_SEQUENCES:=$data/Toys_and_Games.txt}"
: "${AMAZON_ATTRIBUTES:=$data/Toys_and_Games_item2attributes.json}"
need amazon_toys "$AMAZON_SEQUENCES"
need amazon_toys "$AMAZON_ATTRIBUTES"
export AMAZON_SEQUENCES AMAZON_ATTRIBUTES PROFILE="${PROFILE:-amazon_toys}"
every_seed amazon_toys "${@:2}"
