#!/usr/bin/env bash
# 11. Evaluate one model of the run: bash scripts/11_evaluate.sh base|stage1|stage2|sft|distill|rl|baselines [evaluate.py's flags]
#     The base LLM has no SIDs, so only its general ability is measured. ALSO_EXCLUDE_SEEN=1: the ranking tasks a second time with the
#     history's items left out, as results_<name>_unseen. JUDGE names an LLM judge (benchmarks/judges/).
source "$(dirname "$0")/common.sh"
: "${VERSION:=v1.0}"
seen=() also=()
[[ "$EXCLUDE_SEEN" == 1 ]] && seen=(--exclude_seen)
[[ "$ALSO_EXCLUDE_SEEN" == 1 ]] && also=(--also_exclude_seen)
argument "${1:-}" "11_evaluate.sh: needs a model; base, stage1, stage2, sft, distill, rl or baselines"
name="$1"
if [[ "$name" == baselines ]]; then
  run python "$ROOT/benchmarks/baselines.py" --data_dir "$BENCHMARK_DATA_DIR" --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" \
    --sample_size "$EVAL_SAMPLE_SIZE" --baselines $BASELINES --epochs "$BASELINE_EPOCHS" --seed "${SEED:-0}" $BASELINE_ARGS "${seen[@]}" "${also[@]}" "${@:2}"
  exit
fi
rows="$EVAL_SAMPLE_SIZE"
[[ "$name" == base || "$name" == stage1 || "$name" == stage2 ]] && rows="$EARLY_SAMPLE_SIZE"
flags=(--sample_size "$rows" --text_sample_size "$TEXT_SAMPLE_SIZE" --max_answer_tokens "$MAX_ANSWER_TOKENS"
  --num_beams "$NUM_BEAMS" --free_sids "$FREE_SIDS" "${seen[@]}")
[[ -n "${JUDGE:-}" ]] && flags+=(--judge "$JUDGE")
[[ -n "$EVAL_TASKS" ]] && flags+=(--tasks $EVAL_TASKS)
[[ "$name" == base ]] && flags+=(--tasks general)
[[ "$name" == sft ]] && flags+=(--beam_widths $BEAM_WIDTHS --beam_samples "$BEAM_SAMPLES")
run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "$name" false "${flags[@]}" "${@:2}"
# A name of one's own is for one evaluation.
if [[ "$ALSO_EXCLUDE_SEEN" == 1 && "$name" != base && " ${*:2} " != *" --result_name"* ]]; then
  ranked=rank
  [[ -n "$EVAL_TASKS" ]] && ranked="$(python -c 'import sys, onerec.tasks as t
print(*(name for name in sys.argv[1:] if name in (t.RANK, *t.RANK_TASKS)))' $EVAL_TASKS)"
  [[ -n "$ranked" ]] || exit 0
  run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "${name}_unseen" false --sample_size "$rows" --num_beams "$NUM_BEAMS" \
    --free_sids 0 --exclude_seen --tasks $ranked "${@:2}"
fi
