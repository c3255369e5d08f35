#!/usr/bin/env bash
# Set up everything in .venv (or in the environment that VENV names): bash scripts/install.sh [--gpu] [--dev]
#   --gpu  also requirements-gpu.txt (faiss-gpu, deepspeed)
#   --dev  also requirements-dev.txt (pytest, ruff, pre-commit)
# A second run with the same requirements does nothing. pip's own variables (PIP_INDEX_URL, PIP_FIND_LINKS, …) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VENV:=.venv}"
: "${PYTHON_BASE:=python3}"

files=(requirements.txt)
for arg in "$@"; do
  case "$arg" in
    --gpu) files+=(requirements-gpu.txt) ;;
    --dev) files+=(requirements-dev.txt) ;;
    *) echo "error: $arg: is not a flag of install.sh; --gpu or --dev" >&2; exit 2 ;;
  esac
done

stamp="$VENV/.onerec-installed"
wanted="$(cat "${files[@]}" pyproject.toml | sha256sum | cut -d' ' -f1)"
if [[ -f "$stamp" ]] && grep -q "$wanted" "$stamp"; then
  exit 0
fi

[[ -x "$VENV/bin/python" ]] || "$PYTHON_BASE" -m venv "$VENV"
args=()
for file in "${files[@]}"; do args+=(-r "$file"); done
set -x
"$VENV/bin/python" -m pip install --quiet --upgrade pip
"$VENV/bin/python" -m pip install --quiet --progress-bar off "${args[@]}"
{ set +x; } 2>/dev/null
# The build backend's chatter goes to a file; it is shown where the step fails.
"$VENV/bin/python" -m pip install --quiet --no-deps --no-build-isolation -e . > "$VENV/editable.log" 2>&1 ||
  { cat "$VENV/editable.log" >&2; exit 2; }
echo "$wanted" >> "$stamp"
echo "installed $(IFS=', '; echo "${files[*]}") into $VENV"
