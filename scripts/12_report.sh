#!/usr/bin/env bash
# 12. The results of every evaluated stage side by side: table, Markdown, JSON and one HTML page in $RUN_DIR/report.
source "$(dirname "$0")/common.sh"
settings_of evaluate
: "${VERSION:=v1.0}" "${BASELINES:=popularity cooccurrence itemknn transitions}"
results="$BENCHMARK_BASE_DIR/results/$VERSION"
folders=() labels=() logs=()
for stage in base stage1 stage2 sft distill rl; do
  [[ -f "$results/results_$stage/metrics.json" ]] && folders+=("$results/results_$stage") && labels+=("$stage")
  [[ -f "$results/results_${stage}_prior/metrics.json" ]] && folders+=("$results/results_${stage}_prior") && labels+=("$stage + prior")
  [[ -f "$MODELS/$stage/train_log.jsonl" ]] && logs+=("$stage=$MODELS/$stage/train_log.jsonl")
  # Distillation and GRPO: a file an attempt, the latest last.
  while read -r file; do
    [[ -f "$file" ]] && logs+=("$stage=$file")
  done < <(ls -tr "$MODELS/$stage"/metrics_*.jsonl 2> /dev/null)
done
argument "${folders[*]-}" "$results: holds no results of a model; bash scripts/11_evaluate.sh sft"
baselines=()
for name in ${BASELINES//,/ }; do
  [[ -f "$results/results_$name/metrics.json" ]] && baselines+=("$results/results_$name")
done
titles=(--titles "$RAW_DATA/onerec_data/pid2caption.parquet")
product="$RAW_DATA/onerec_data/product_pid2caption.parquet"
[[ -f "$product" ]] && titles+=(--product_titles "$product")
manifests=()
for manifest in "$RAW_DATA/manifest.json" "$DATA_OUTPUT/manifest.json" "$TOKENIZER_DIR/quality/codes_report.manifest.json" \
  "$MODELS"/*/manifest.json "$MODELS"/*/choice.manifest.json; do
  [[ -f "$manifest" ]] && manifests+=("$manifest")
done
run python "$ROOT/benchmarks/report.py" --results "${folders[@]}" --labels "${labels[@]}" --train_logs "${logs[@]}" \
  --manifests "${manifests[@]}" \
  --baselines "${baselines[@]}" --data_dir "$BENCHMARK_DATA_DIR" "${titles[@]}" --output_dir "$RUN_DIR/report" \
  --title "OneRec factory: $(basename "$RUN_DIR"), seed $SEED"
