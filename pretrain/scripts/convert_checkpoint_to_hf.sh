#!/usr/bin/env bash
# Convert a training checkpoint for transformers: convert_checkpoint_to_hf.sh <base_model_dir> <model_home> <step>
# Writes <model_home>/step<step>/global_step<step>/converted/. Paths are relative to this stage's folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
if [[ $# -lt 3 ]]; then
  echo "error: convert_checkpoint_to_hf.sh: $# arguments; give <base_model_dir> <model_home> <step>" >&2
  exit 2
fi
BASE_MODEL_DIR="$1" MODEL_HOME="$2" STEP="$3"

cd "$(dirname "$0")/.."
source scripts/common.sh
checkpoint="$MODEL_HOME/step$STEP/global_step$STEP"
run "$PYTHON" convert_checkpoint_to_hf.py --base_model_dir "$BASE_MODEL_DIR" --checkpoint_dir "$checkpoint" \
  --output_dir "$checkpoint/converted" "${@:4}"
