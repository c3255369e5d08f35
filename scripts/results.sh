#!/usr/bin/env bash
# Write RESULTS.md and every other table of measurements from experiments/*/results.json: bash scripts/results.sh [results.py's flags]
#   bash scripts/results.sh --add runs/mine/report/report.json --experiment experiments/2026-12-01-mine   # a run's table into one
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
exec python3 "$ROOT/scripts/results.py" "$@"
