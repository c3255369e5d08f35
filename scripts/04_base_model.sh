#!/usr/bin/env bash
# 4. A tiny Qwen3 made on the spot and trained on general text: stands for the base LLM, and later for the teacher.
#    On a cluster: skip this and give HF_MODEL_DIR (a downloaded Qwen3) to the next step. Settings: base.env.
#   HIDDEN_SIZE NUM_HIDDEN_LAYERS VOCAB_SIZE …   its shape: flags of pretrain/make_tiny_qwen3.py
#   NUM_TRAINING_STEPS LEARNING_RATE …           its training: flags of pretrain/train.py
source "$(dirname "$0")/common.sh"
settings_of base
TINY_DIR="$MODELS/tiny" OUTPUT_DIR="$MODELS/base" RAW_DATA="$RAW_DATA" become bash "$ROOT/pretrain/scripts/train_base.sh"
