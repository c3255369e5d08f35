#!/usr/bin/env bash
# 3. Logs and SIDs to training records and benchmark files, then the RL data, the mixes of pretraining and SFT
#    (which may leave RL's users out) and the prompts of distillation with its anchors. Settings: the profile's
#    data.env, and its mixes pretrain.json and sft.json.
#   TEST_SIZE USER_SHARE   RL data: test rows a task; share of the users whose training rows only RL sees  (1000 1)
#   MAX_PER_SOURCE         distillation: prompts of one source at most                                     (all)
#   PROMPTS NOUN           the wordings: zh, en, or a JSON file; what an item is called                    (zh, its own)
#   VALIDATION_USERS       of evaluate.env: where it is set, the validation targets as benchmark files too
source "$(dirname "$0")/common.sh"
settings_of data
# The folders are those below BASE_DIR.
export BASE_DIR="$RUN_DIR" INPUT_DIR="" OUTPUT_DIR="" INPUT="" OUTPUT_FILE="" SID_SPEC=""
items="$RAW_DATA/onerec_data"
product="$items/product_pid2sid.parquet"
[[ -f "$product" ]] || product=""
INPUT_METADATA="$items/onerec_bench_release.parquet" PID2SID_MAPPING="$items/video_ad_pid2sid.parquet" \
  PRODUCT_PID2SID_MAPPING="$product" CAPTION_INPUT="$items/pid2caption.parquet" \
  GENERAL_HELDOUT="$RAW_DATA/general_text/heldout" OUTPUT_BASE_DIR="$DATA_OUTPUT" run bash "$ROOT/data/onerec_data/run.sh"
run bash "$ROOT/data/prepare_rl.sh"
CONFIG="$(profile_file pretrain.json)" run bash "$ROOT/data/prepare_pretrain.sh"
CONFIG="$(profile_file sft.json)" run bash "$ROOT/data/prepare_sft.sh"
text="$RAW_DATA/general_text/pretrain"
[[ -d "$text" ]] || text=""
if [[ -n "$text" || -d "$RAW_DATA/general_text/sft" ]]; then
  TEXT_INPUT="$text" run bash "$ROOT/data/prepare_distillation.sh"
else
  echo "left out: the prompts of distillation (no $RAW_DATA/general_text)"
fi
# Prompts of the tasks that explain, where distillation keeps the student as it was; those of recommendation are RL's.
explain="$(python -c 'import sys, pathlib, onerec.tasks
print(*onerec.tasks.explained(pathlib.Path(sys.argv[1])), sep="\n")' "$DATA_OUTPUT")"
if [[ -n "$explain" ]]; then
  mapfile -t explain <<< "$explain"
  run python "$ROOT/data/prepare_distillation.py" --input "${explain[@]}" --output "$DATA_OUTPUT/distillation_anchors.parquet"
fi
# Made here, of the same data, so that two evaluations beside each other do not both make it.
rm -f "$RUN_DIR/validation/manifest.json"
settings_of evaluate
if ((${VALIDATION_USERS:-0})); then validation_data; fi
