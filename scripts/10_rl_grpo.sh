#!/usr/bin/env bash
# 10. GRPO on the five recommendation tasks, from the distilled model, or from SFT where there is none.
#     Settings: the profile's grpo.env.
#   NUM_TRAINING_STEPS LEARNING_RATE STAGE2_BEAM_SIZE …   flags of verl_rl/train_grpo.py
source "$(dirname "$0")/common.sh"
settings_of grpo
BASE_MODEL="$(first_of "$MODELS/distill/hf" "$MODELS/sft/hf")" DATA_DIR="$DATA_OUTPUT/rl_data" OUTPUT_DIR="$MODELS/rl" \
  become bash "$ROOT/verl_rl/recipe/onerec/run_grpo.sh"
