#!/usr/bin/env bash
# 4. A tiny Qwen3 made on the spot and trained on general text: stands for the base LLM, and later for the teacher.
#    With a Qwen3 of your own skip this: its folder is HF_MODEL_DIR of step 5 and TEACHER_MODEL of step 9.
#    Settings: the profile's base.env.
#   HIDDEN_SIZE NUM_HIDDEN_LAYERS VOCAB_SIZE …   its shape: flags of pretrain/make_tiny_qwen3.py
#   NUM_TRAINING_STEPS LEARNING_RATE …           its training: flags of pretrain/train.py
source "$(dirname "$0")/common.sh"
settings_of base
TINY_DIR="$MODELS/tiny" OUTPUT_DIR="$MODELS/base" RAW_DATA="$RAW_DATA" become bash "$ROOT/pretrain/scripts/train_base.sh"
