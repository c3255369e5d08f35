#!/usr/bin/env bash
# Serve a checkpoint, and a page where one looks at its recommendations: bash serve.sh <model_path> [serve.py's flags]
# A model in a run's folder finds the run's users, titles and results; else --data_dir, --titles.
# ONEREC_API_KEY: a key that every request must bring.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
: "${VENV:=$ROOT/.venv}"
[[ -x "$VENV/bin/python" ]] && export PATH="$VENV/bin:$PATH"
: "${PYTHON:=python}"
if [[ -z "${1:-}" || "$1" == --* ]]; then
  echo "error: serve.sh: needs a model; bash serve.sh <model_path> [--data_dir <benchmark_data>]" >&2
  exit 2
fi
export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}" TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
exec "$PYTHON" "$ROOT/benchmarks/serve.py" --model_path "$1" "${@:2}"
