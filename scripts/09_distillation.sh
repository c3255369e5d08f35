#!/usr/bin/env bash
# 9. On-policy distillation: the base model teaches the SFT model on its own answers; general ability comes back.
#    Settings: the profile's distill.env.
#   TOTAL_STEPS LEARNING_RATE LOSS …   flags of verl_distillation/distill.py
#   TEACHER_MODEL     the base model's folder, an absolute path                                       (step 4's)
#   ANCHOR_SHARE      share of the prompts that keep the student's own tasks where they are; 0: none  (0.25)
#   EXPLAIN_ANCHORS   1: half of these ask for descriptions and reasons, 0: all for recommendation    (1)
source "$(dirname "$0")/common.sh"
settings_of distill
anchors=""
if [[ "${ANCHOR_SHARE:-}" == 0 ]]; then
  unset ANCHOR_SHARE
else
  anchors="$DATA_OUTPUT/rl_data/train.parquet"
  if ((${EXPLAIN_ANCHORS:-1})); then
    # Stage 3 makes the file where the data have a task in words.
    if [[ -f "$DATA_OUTPUT/distillation_anchors.parquet" ]]; then
      anchors+=$'\n'"$DATA_OUTPUT/distillation_anchors.parquet"
    else
      echo "no task of these data describes items or gives reasons: all anchors are of recommendation"
    fi
  fi
fi
: "${BASE_MODEL:=$MODELS/sft/hf}" "${TEACHER_MODEL:=$MODELS/base/hf}"
export BASE_MODEL TEACHER_MODEL
DATASET_PARQUET="$DATA_OUTPUT/onpolicy_distillation.parquet" OUTPUT_DIR="$MODELS/distill" ANCHOR_PARQUET="$anchors" \
  become bash "$ROOT/verl_distillation/recipe/onpolicy_distill/run_qwen3_distill.sh"
