#!/usr/bin/env bash
# All RecIF tasks, in one pass: cd data/onerec_data && bash run.sh
# Every variable can be set in the environment. RUN_<TASK>=0 switches a task off; a task whose columns the input lacks is
# left out by itself. RUN_SFT_RECO_REASON=1 adds reasoning from the items' tags, for logs without a chain of thought.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${RAW_DATA:=$(raw_data ..)}"
: "${INPUT_METADATA:=$RAW_DATA/onerec_data/onerec_bench_release.parquet}"
: "${PID2SID_MAPPING:=$RAW_DATA/onerec_data/video_ad_pid2sid.parquet}"
# Empty where the logs have no products: the product task is then left out.
: "${PRODUCT_PID2SID_MAPPING=$RAW_DATA/onerec_data/product_pid2sid.parquet}"
: "${CAPTION_INPUT:=$RAW_DATA/onerec_data/pid2caption.parquet}"
: "${GENERAL_HELDOUT:=$RAW_DATA/general_text/heldout}"
: "${OUTPUT_BASE_DIR:=../output}"
# release, simple, or a JSON file of your own: which column plays which part.
: "${LAYOUT:=release}"
: "${SEED:=42}"
: "${WORKERS:=1}"
: "${RUN_BENCHMARK:=1}"
# Whose targets the benchmark asks for: 1 test, 2 validation (leave-one-out adapters make both).
: "${BENCHMARK_SPLIT:=1}"

skip=() also=()
unset RUN_PRETRAIN_SID2CAPTION # OpenOneRec's older name, which entry.sh has taken
for switch in "${!RUN_PRETRAIN_@}" "${!RUN_SFT_@}"; do
  task="${switch#RUN_}"
  case "${!switch}" in
    0) skip+=("${task,,}") ;;
    1) also+=("${task,,}") ;;
  esac
done
product=()
[[ -n "$PRODUCT_PID2SID_MAPPING" ]] && product=(--product_pid2sid "$PRODUCT_PID2SID_MAPPING")
heldout=()
[[ -d "$GENERAL_HELDOUT" ]] && heldout=(--general_heldout "$GENERAL_HELDOUT")
set -x
"$PYTHON" run.py --input "$INPUT_METADATA" --pid2sid "$PID2SID_MAPPING" "${product[@]}" \
  --caption "$CAPTION_INPUT" --output_dir "$OUTPUT_BASE_DIR" --layout "$LAYOUT" --seed "$SEED" --workers "$WORKERS" \
  --benchmark "$RUN_BENCHMARK" --benchmark_split "$BENCHMARK_SPLIT" "${heldout[@]}" ${skip[@]+--skip "${skip[@]}"} ${also[@]+--also "${also[@]}"}
