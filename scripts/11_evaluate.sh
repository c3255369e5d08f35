#!/usr/bin/env bash
# 11. Evaluate one model of the run:
#   bash scripts/11_evaluate.sh base|stage1|stage2|sft|distill|rl|baselines [evaluate.py's flags]
#     The base LLM has no SIDs, so only its general ability is measured. Settings: the profile's evaluate.env.
#   TASKS               tasks of the benchmark, of models with SIDs                              (all there are)
#   SAMPLE_SIZE EARLY_SAMPLE_SIZE   rows a task (-1: all); the same of the models before SFT     (-1, as the others)
#   NUM_BEAMS TEXT_SAMPLE_SIZE …    flags of benchmarks/evaluate.py; JUDGE names an LLM judge    (no judge)
#   BEAM_WIDTHS BEAM_SAMPLES        SFT: recall against beam width
#   EXCLUDE_SEEN=1      the items of the history are never recommended
#   ALSO_EXCLUDE_SEEN=1 the ranking tasks a second time in this way, as results_<name>_unseen
#   BASELINES           those that are run; EPOCHS DROPOUT LR BATCH_SIZE of the trained ones
#                       (popularity cooccurrence itemknn transitions)
source "$(dirname "$0")/common.sh"
settings_of evaluate
: "${VERSION:=v1.0}" "${TASKS:=}" "${BASELINES:=popularity cooccurrence itemknn transitions}"
argument "${1:-}" "11_evaluate.sh: needs a model; base, stage1, stage2, sft, distill, rl or baselines"
name="$1"
if [[ "$name" == baselines ]]; then
  run python "$ROOT/benchmarks/baselines.py" --data_dir "$BENCHMARK_DATA_DIR" \
    --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" --baselines ${BASELINES//,/ } "${@:2}"
  exit
fi
flags=()
[[ -n "$TASKS" ]] && flags+=(--tasks ${TASKS//,/ })
case "$name" in
  base | stage1 | stage2) [[ -n "${EARLY_SAMPLE_SIZE:-}" ]] && flags+=(--sample_size "$EARLY_SAMPLE_SIZE") ;;
esac
[[ "$name" == base ]] && flags+=(--tasks general)
[[ "$name" == sft ]] || unset BEAM_WIDTHS BEAM_SAMPLES
# The seed of the resamples is the same for every run, so that intervals are comparable.
flags+=(--seed 0)
run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "$name" false "${flags[@]}" "${@:2}"
# A name of one's own is for one evaluation.
if [[ "${ALSO_EXCLUDE_SEEN:-0}" == 1 && "$name" != base && " ${*:2} " != *" --result_name"* ]]; then
  ranked=rank
  [[ -n "$TASKS" ]] && ranked="$(python -c 'import sys, onerec.tasks as t
print(*(name for name in sys.argv[1:] if name in (t.RANK, *t.RANK_TASKS)))' ${TASKS//,/ })"
  [[ -n "$ranked" ]] || exit 0
  unset BEAM_WIDTHS BEAM_SAMPLES
  run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "${name}_unseen" false "${flags[@]}" --free_sids 0 --exclude_seen \
    --tasks $ranked "${@:2}"
fi
