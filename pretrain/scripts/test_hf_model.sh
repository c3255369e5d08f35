#!/usr/bin/env bash
# Load a checkpoint, check its tokens, generate with and without thinking: test_hf_model.sh <hf_model_dir>
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
if [[ $# -lt 1 ]]; then
  echo "error: test_hf_model.sh: no argument; give <hf_model_dir>" >&2
  exit 2
fi
HF_MODEL_DIR="$1"

cd "$(dirname "$0")/.."
source scripts/common.sh
run "$PYTHON" check_hf_model.py --hf_model_dir "$HF_MODEL_DIR" "${@:2}"
