#!/usr/bin/env bash
# Between the stages, where VALIDATION_USERS is set:
#   bash scripts/choose_checkpoint.sh stage2|sft [choose_checkpoint.py's flags]
# Scores the stage's checkpoints on the validation targets of so many users and makes $MODELS/<stage>/hf of the best
# one; the curve is in $MODELS/<stage>/choice.json. The test targets are never read. Settings: the profile's
# evaluate.env.
#   VALIDATION_USERS VALIDATION_BEAMS   users that are asked about (-1: all; 0: the quickstart leaves the choice out),
#                                       beams (2500 20)
source "$(dirname "$0")/common.sh"
settings_of evaluate
argument "${1:-}" "choose_checkpoint.sh: needs a stage; stage2 or sft"
stage="$1" before=()
case "$stage" in
  stage2) from="$(first_of "$MODELS/stage1/hf" "$MODELS/base_itemic")" ;;
  sft)
    from="$(first_of "$MODELS/stage2/hf" "$MODELS/stage1/hf" "$MODELS/base_itemic")"
    [[ ! -f "$MODELS/stage2/choice.json" ]] || before=(--before "$MODELS/stage2/choice.json")
    ;;
  *) echo "error: choose_checkpoint.sh: $stage has no checkpoints to choose from; stage2 or sft" >&2 && exit 2 ;;
esac
validation_data
# The lot by which users are drawn is the same for every run.
run python "$ROOT/benchmarks/choose_checkpoint.py" --run_dir "$MODELS/$stage" \
  --data_dir "$RUN_DIR/validation/benchmark_data" --seed 0 ${before[@]+"${before[@]}"} "${@:2}"
best="$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["best"])' "$MODELS/$stage/choice.json")"
run python "$ROOT/pretrain/convert_checkpoint_to_hf.py" --base_model_dir "$from" \
  --checkpoint_dir "$MODELS/$stage/step$best" --output_dir "$MODELS/$stage/hf"
