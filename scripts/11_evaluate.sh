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
#   PRIOR=1             sft, distill and rl once more on the ranking tasks, ranked together with an item prior, the
#                       transitions of the training rows: results_<name>_prior, a row "<name> + prior" of the report
#                       (baseline transitions: the prior alone). Its weight is the one that ranks VALIDATION_USERS
#                       validation users best, or PRIOR_WEIGHT, which a world without validation targets needs.
#   BASELINES           those that are run; EPOCHS DROPOUT LR BATCH_SIZE of the trained ones. Where VALIDATION_USERS
#                       is set, all validation users stop their training (popularity cooccurrence itemknn transitions)
source "$(dirname "$0")/common.sh"
settings_of evaluate
: "${VERSION:=v1.0}" "${TASKS:=}" "${BASELINES:=popularity cooccurrence itemknn transitions}"
argument "${1:-}" "11_evaluate.sh: needs a model; base, stage1, stage2, sft, distill, rl or baselines"
name="$1"
if [[ "$name" == baselines ]]; then
  stop=()
  if ((${VALIDATION_USERS:-0})); then # as for the choice of checkpoints, which comes later than this
    validation_data
    stop=(--validation_dir "$RUN_DIR/validation/benchmark_data")
  fi
  run python "$ROOT/benchmarks/baselines.py" --data_dir "$BENCHMARK_DATA_DIR" \
    --output_dir "$BENCHMARK_BASE_DIR/results/$VERSION" --baselines ${BASELINES//,/ } ${stop[@]+"${stop[@]}"} "${@:2}"
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
[[ "$name" == base || " ${*:2} " == *" --result_name"* ]] && exit
ranked=rank
[[ -n "$TASKS" ]] && ranked="$(python -c 'import sys, onerec.tasks as t
print(*(name for name in sys.argv[1:] if name in (t.RANK, *t.RANK_TASKS)))' ${TASKS//,/ })"
[[ -n "$ranked" ]] || exit 0
unset BEAM_WIDTHS BEAM_SAMPLES
given=("${@:2}")
# again <suffix> [flags]: the ranking tasks once more, as results_<name><suffix>.
again() {
  run bash "$ROOT/benchmarks/eval_script.sh" "$MODELS/$name/hf" "$name$1" false "${flags[@]}" --free_sids 0 "${@:2}" \
    --tasks $ranked "${given[@]}"
}
also_unseen="${ALSO_EXCLUDE_SEEN:-0}"
[[ "$also_unseen" == 1 ]] && again _unseen --exclude_seen
if [[ "${PRIOR:-0}" == 1 && "$name" =~ ^(sft|distill|rl)$ ]]; then
  items="$RAW_DATA/onerec_data"
  prior=(--prior "$items/item_transitions.parquet")
  [[ -f "$items/product_pid2sid.parquet" ]] && prior+=(--product_prior "$items/product_transitions.parquet")
  for ((i = 1; i < ${#prior[@]}; i += 2)); do
    catalogue=video_ad
    [[ "${prior[$i]}" == */product_* ]] && catalogue=product
    [[ -f "${prior[$i]}" ]] || run python "$ROOT/data/transitions.py" --input "$items/onerec_bench_release.parquet" \
      --output_path "${prior[$i]}" --catalogue "$catalogue"
  done
  if [[ -z "${PRIOR_WEIGHT:-}" ]]; then
    validation_data
    prior+=(--validation_dir "$RUN_DIR/validation/benchmark_data")
  fi
  again _prior "${prior[@]}"
  [[ "$also_unseen" == 1 ]] && again _prior_unseen --exclude_seen "${prior[@]}"
fi
exit 0
