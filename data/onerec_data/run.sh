#!/usr/bin/env bash
# All RecIF tasks, in one pass: cd data/onerec_data && bash run.sh
#   RAW_DATA            folder of the release, for the files below                          (../raw_data, or the root's)
#   INPUT_METADATA      the logs: a file, a folder or a pattern
#   PID2SID_MAPPING PRODUCT_PID2SID_MAPPING   SIDs of videos and ads, and of products, where there are
#   CAPTION_INPUT GENERAL_HELDOUT             captions; held-out general text, where there is such a folder
#   OUTPUT_BASE_DIR     where the records go                                                (../output)
#   LAYOUT              release, simple, or a JSON file: which column plays which part       (release)
#   PROMPTS NOUN        the wordings: zh, en, or a JSON file; what an item is called: product, person/people (zh, its own)
#   SEED WORKERS        of the wordings; processes                                          (42 1)
#   RUNNER              ray: tasks of a Ray cluster (docs/cluster.md), WORKERS at a time    (local)
#   RUN_<TASK>          0 switches a task off. RUN_SFT_RECO_REASON=1 adds reasoning from the items' tags, for logs
#                       without a chain of thought. A task whose columns the input lacks is left out by itself.
#   RUN_BENCHMARK BENCHMARK_SPLIT   the benchmark's files; whose targets they ask for: 1 test, 2 validation   (1 1)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${RAW_DATA:=$(raw_data ..)}"
: "${INPUT_METADATA:=$RAW_DATA/onerec_data/onerec_bench_release.parquet}"
: "${PID2SID_MAPPING:=$RAW_DATA/onerec_data/video_ad_pid2sid.parquet}"
product="$RAW_DATA/onerec_data/product_pid2sid.parquet"
[[ -f "$product" ]] || product=""
: "${PRODUCT_PID2SID_MAPPING=$product}"
: "${CAPTION_INPUT:=$RAW_DATA/onerec_data/pid2caption.parquet}"
: "${OUTPUT_BASE_DIR:=../output}"
export GENERAL_HELDOUT="${GENERAL_HELDOUT:-$RAW_DATA/general_text/heldout}"
[[ -d "$GENERAL_HELDOUT" ]] || GENERAL_HELDOUT=""

skip=() also=()
unset RUN_PRETRAIN_SID2CAPTION # OpenOneRec's older name, which entry.sh has taken
for switch in "${!RUN_PRETRAIN_@}" "${!RUN_SFT_@}"; do
  task="${switch#RUN_}"
  case "${!switch}" in
    0) skip+=("${task,,}") ;;
    1) also+=("${task,,}") ;;
  esac
done
set -x
"$PYTHON" run.py --input "$INPUT_METADATA" --pid2sid "$PID2SID_MAPPING" --caption "$CAPTION_INPUT" \
  ${PRODUCT_PID2SID_MAPPING:+--product_pid2sid "$PRODUCT_PID2SID_MAPPING"} --output_dir "$OUTPUT_BASE_DIR" \
  --benchmark "${RUN_BENCHMARK:-1}" ${skip[@]+--skip "${skip[@]}"} ${also[@]+--also "${also[@]}"}
