#!/usr/bin/env bash
# Between the stages, where VALIDATION_USERS is set: bash scripts/choose_checkpoint.sh stage2|sft [choose_checkpoint.py's flags]
# Scores the stage's checkpoints on the validation targets of so many users and makes $MODELS/<stage>/hf of the best one; the curve
# is in $MODELS/<stage>/choice.json. The test targets are never read.
source "$(dirname "$0")/common.sh"
argument "${1:-}" "choose_checkpoint.sh: needs a stage; stage2 or sft"
stage="$1"
case "$stage" in
  stage2) from="$STG2_FROM" ;;
  sft) from="$SFT_FROM" ;;
  *) echo "error: choose_checkpoint.sh: $stage is not a stage with checkpoints to choose from; stage2 or sft" >&2; exit 2 ;;
esac
seen=()
[[ "$EXCLUDE_SEEN" == 1 ]] && seen=(--exclude_seen)
run python "$ROOT/benchmarks/choose_checkpoint.py" --run_dir "$MODELS/$stage" --data_dir "$RUN_DIR/validation/benchmark_data" \
  --sample_size "$VALIDATION_USERS" --num_beams "$VALIDATION_BEAMS" "${seen[@]}" "${@:2}"
best="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["best"])' "$MODELS/$stage/choice.json")"
run python "$ROOT/pretrain/convert_checkpoint_to_hf.py" --base_model_dir "$from" --checkpoint_dir "$MODELS/$stage/step$best" \
  --output_dir "$MODELS/$stage/hf"
