#!/usr/bin/env bash
# Write RESULTS.md and every other table of measurements from experiments/*/results.json:
#   bash scripts/results.sh [results.py's flags]
#   bash scripts/results.sh --add runs/mine/report/report.json --experiment experiments/2026-12-01-mine   # one more
# In the environment that install.sh made.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
: "${VENV:=$ROOT/.venv}"
[[ -x "$VENV/bin/python" ]] && export PATH="$VENV/bin:$PATH"
exec python "$ROOT/scripts/results.py" "$@"
