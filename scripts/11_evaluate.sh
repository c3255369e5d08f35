#!/usr/bin/env bash
# 11. Evaluate one model of the run: bash scripts/11_evaluate.sh base|stage1|stage2|sft|baselines [evaluate.py's flags]
#     The base LLM has no SIDs, so only its general ability is measured.
source "$(dirname "$0")/common.sh"
: "${VERSION:=v1.0}"
seen=()
[[ "$EXCLUDE_SEEN" == 1 ]] && seen=(--exclude_seen)
name="${1:?error: 11_evaluate.sh: needs a model; base, stage1, stage2, sft or baselines}"
if [[ "$name" == baselines ]]; then
  run python "$ROOT/benchmarks/baselines.py" --data_dir "$BENCHMARK_DATA_DIR" --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" \
    --sample_size "$EVAL_SAMPLE_SIZE" "${seen[@]}"
  exit
fi
flags=(--sample_size "$EVAL_SAMPLE_SIZE" --num_beams "$NUM_BEAMS" "${seen[@]}")
[[ "$name" == base ]] && flags+=(--tasks general)
run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "$name" false "${flags[@]}" "${@:2}"
