#!/usr/bin/env bash
# Set up and pass the tests: bash scripts/test.sh [--fast] [pytest arguments]
#   --fast  unit tests only; leaves out the end-to-end runs that are marked slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
cd "$ROOT"
: "${VENV:=.venv}"
bash scripts/install.sh --dev
export PATH="$PWD/$VENV/bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Three files at a time, in the order and the groups of tests/conftest.py: on two cores too, where runs of several
# processes wait for one after another to start.
select=(-n 3 --dist loadscope --no-loadscope-reorder)
if [[ "${1:-}" == "--fast" ]]; then
  select+=(-m "not slow")
  shift
fi
set -x
ruff check .
ruff format --check .
python -m pytest "${select[@]}" "$@"
