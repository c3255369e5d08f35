#!/usr/bin/env bash
# All RecIF tasks, in one pass: cd data/onerec_data && bash run.sh
# Every variable can be set in the environment; RUN_<TASK>=0 switches a task off.
set -euo pipefail
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${INPUT_METADATA:=../raw_data/onerec_data/onerec_bench_release.parquet}"
: "${PID2SID_MAPPING:=../raw_data/onerec_data/video_ad_pid2sid.parquet}"
# Empty where the logs have no products: the product task is then left out.
: "${PRODUCT_PID2SID_MAPPING=../raw_data/onerec_data/product_pid2sid.parquet}"
: "${CAPTION_INPUT:=../raw_data/onerec_data/pid2caption.parquet}"
: "${GENERAL_HELDOUT:=../raw_data/general_text/heldout}"
: "${OUTPUT_BASE_DIR:=../output}"
: "${SEED:=42}"
: "${RUN_BENCHMARK:=1}"

tasks=()
for task in pretrain_video_rec pretrain_user_profile pretrain_item_understand sft_video_rec sft_interactive_rec \
  sft_label_cond_rec sft_label_pred sft_ad_rec sft_product_rec sft_item_understand sft_rec_reason; do
  switch="RUN_${task^^}"
  if [[ "$task" == sft_product_rec && -z "$PRODUCT_PID2SID_MAPPING" ]]; then continue; fi
  if [[ "${!switch:-1}" == 1 ]]; then tasks+=("$task"); fi
done
product=()
[[ -n "$PRODUCT_PID2SID_MAPPING" ]] && product=(--product_pid2sid "$PRODUCT_PID2SID_MAPPING")
heldout=()
[[ -d "$GENERAL_HELDOUT" ]] && heldout=(--general_heldout "$GENERAL_HELDOUT")
set -x
"$PYTHON" run.py --input "$INPUT_METADATA" --pid2sid "$PID2SID_MAPPING" "${product[@]}" \
  --caption "$CAPTION_INPUT" --output_dir "$OUTPUT_BASE_DIR" --seed "$SEED" --benchmark "$RUN_BENCHMARK" \
  "${heldout[@]}" --tasks "${tasks[@]}"
