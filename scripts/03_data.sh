#!/usr/bin/env bash
# 3. Logs and SIDs to training records and benchmark files, then the RL data, the mixes of pretraining and SFT (which may
#    leave RL's users out) and the prompts of distillation with its anchors. With VALIDATION_USERS also the validation targets as benchmark files, for choose_checkpoint.sh.
source "$(dirname "$0")/common.sh"
export SEED="${SEED:-0}" BASE_DIR="$RUN_DIR"
items="$RAW_DATA/onerec_data"
product="$items/product_pid2sid.parquet"
[[ -f "$product" ]] || product=""
INPUT_METADATA="$items/onerec_bench_release.parquet" PID2SID_MAPPING="$items/video_ad_pid2sid.parquet" \
  PRODUCT_PID2SID_MAPPING="$product" CAPTION_INPUT="$items/pid2caption.parquet" \
  GENERAL_HELDOUT="$RAW_DATA/general_text/heldout" OUTPUT_BASE_DIR="$DATA_OUTPUT" run bash "$ROOT/data/onerec_data/run.sh"
if ((VALIDATION_USERS)); then
  run python "$ROOT/data/onerec_data/run.py" --input "$items/onerec_bench_release.parquet" --pid2sid "$items/video_ad_pid2sid.parquet" \
    --caption "$items/pid2caption.parquet" --output_dir "$RUN_DIR/validation" --seed "$SEED" --tasks --benchmark_split 2
fi
TEST_SIZE="$RL_TEST_SIZE" USER_SHARE="$RL_USER_SHARE" run bash "$ROOT/data/prepare_rl.sh"
CONFIG="$ROOT/$DATA_CONFIGS/pretrain.json" run bash "$ROOT/data/prepare_pretrain.sh"
CONFIG="$ROOT/$DATA_CONFIGS/sft.json" run bash "$ROOT/data/prepare_sft.sh"
TEXT_INPUT="$RAW_DATA/general_text/pretrain" MAX_PER_SOURCE="$DISTILL_MAX_PER_SOURCE" run bash "$ROOT/data/prepare_distillation.sh"
# Prompts of the tasks that explain, on which distillation keeps the student what it was; those of recommendation are RL's.
explain="$(python -c 'import sys, pathlib, onerec.tasks
print(*onerec.tasks.explained(pathlib.Path(sys.argv[1])), sep="\n")' "$DATA_OUTPUT")"
if [[ -n "$explain" ]]; then
  mapfile -t explain <<< "$explain"
  run python "$ROOT/data/prepare_distillation.py" --input "${explain[@]}" --max_per_source "$DISTILL_MAX_PER_SOURCE" \
    --output "$DATA_OUTPUT/distillation_anchors.parquet" --seed "$SEED"
fi
