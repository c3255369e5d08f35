#!/usr/bin/env bash
# 10. GRPO on the five recommendation tasks, from the distilled model, or from SFT where there is none.
source "$(dirname "$0")/common.sh"
base="$MODELS/distill/hf"
[[ -d "$base" ]] || base="$MODELS/sft/hf"
BASE_MODEL="$base" DATA_DIR="$DATA_OUTPUT/rl_data" OUTPUT_DIR="$MODELS/rl" SEED="${SEED:-0}" \
  ROLLOUT_N="$RL_ROLLOUT_N" STAGE2_BEAM_SIZE="$RL_BEAM_SIZE" VAL_BEAM_SIZE="$NUM_BEAMS" TRAIN_BATCH_SIZE="$RL_BATCH_SIZE" \
  NUM_TRAINING_STEPS="$RL_STEPS" LEARNING_RATE="$RL_LR" KL_LOSS_COEF="$RL_KL_COEF" REWARD_WEIGHTS="$RL_REWARD_WEIGHTS" \
  PROMPT_LENGTH="$RL_PROMPT_LENGTH" RESPONSE_LENGTH=48 TEST_FREQ="$RL_STEPS" SAVE_FREQ="$RL_SAVE_STEPS" \
  MAX_TOKENS_PER_GPU="$RL_MAX_TOKENS" MAX_NUM_BATCHED_TOKENS=4096 run bash "$ROOT/verl_rl/recipe/onerec/run_grpo.sh"
