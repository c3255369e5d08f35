#!/usr/bin/env bash
# 3. Logs and SIDs to training records and benchmark files, then the mixes of pretraining and SFT, the prompts of
#    distillation and the RL data.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" BASE_DIR="$RUN_DIR"
items="$RAW_DATA/onerec_data"
product="$items/product_pid2sid.parquet"
tasks="video ad product label_cond interactive"
if [[ ! -f "$product" ]]; then
  product=""
  tasks="${tasks/ product/}"
fi
INPUT_METADATA="$items/onerec_bench_release.parquet" PID2SID_MAPPING="$items/video_ad_pid2sid.parquet" \
  PRODUCT_PID2SID_MAPPING="$product" CAPTION_INPUT="$items/pid2caption.parquet" \
  GENERAL_HELDOUT="$RAW_DATA/general_text/heldout" OUTPUT_BASE_DIR="$DATA_OUTPUT" run bash "$ROOT/data/onerec_data/run.sh"
CONFIG="$ROOT/$DATA_CONFIGS/pretrain.json" run bash "$ROOT/data/prepare_pretrain.sh"
CONFIG="$ROOT/$DATA_CONFIGS/sft.json" run bash "$ROOT/data/prepare_sft.sh"
TEXT_INPUT="$RAW_DATA/general_text/pretrain" MAX_PER_SOURCE="$DISTILL_MAX_PER_SOURCE" run bash "$ROOT/data/prepare_distillation.sh"
TEST_SIZE="$RL_TEST_SIZE" TASKS="$tasks" run bash "$ROOT/data/prepare_rl.sh"
