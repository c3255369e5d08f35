#!/usr/bin/env bash
# GRPO on the recommendation tasks:
#   cd verl_rl && BASE_MODEL=… DATA_DIR=… bash recipe/onerec/run_grpo.sh [train_grpo.py's flags]
# Flags of train_grpo.py are variables too, as its --help says. The same command again goes on from the newest checkpoint.
#   BASE_MODEL DATA_DIR OUTPUT_DIR   (../pretrain/output/sft/hf ../data/output/rl_data output/grpo)
#   PID2SID PRODUCT_PID2SID          the SIDs of most tasks and of the product task (empty: none) (BENCHMARK_DATA_DIR's)
#   TWO_STAGE STAGE2_MODE STAGE2_BEAM_SIZE STAGE2_NUM_TOKENS CONSTRAINED   thinking, then a search (1 beam 32 -1 1)
#   ROLLOUT_N STAGE1_MAX_TOKENS ENABLE_THINK ENABLE_NONTHINK USE_FORCE_PREFIX   the thinking              (1 256 0 1 1)
#   PROMPT_LENGTH RESPONSE_LENGTH TEMPERATURE                                                             (2048 512 1)
#   REWARD_WEIGHTS     of think_format, full_hit, partial_hit, pass_rate, pass_at_1, rank_aware
#                      (full_hit=1,partial_hit=0.2)
#   ADVANTAGE          grpo, or maxrl: beams count by their probability, over the expected reward (arXiv 2602.02710)
#   NORM_ADV_BY_STD    0: grpo's advantages are not divided by their group's deviation (Dr. GRPO)         (1)
#   LEARNING_RATE LR_SCHEDULER_TYPE WARMUP_STEPS KL_LOSS_COEF CLIP_RATIO_LOW CLIP_RATIO_HIGH
#                                                                                      (2e-6 constant 0 0.001 0.2 0.28)
#   TRAIN_BATCH_SIZE MINI_BATCH_SIZE NUM_TRAINING_STEPS NUM_EPOCHS   a step, an update; -1: by epochs (64 all -1 1)
#   MAX_TOKENS_PER_GPU SHARE_PROMPTS   of a micro-batch; a group's prompt is computed once                (16384 1)
#   MERGE_RATIO        below 1: the exported weights are the average with the base model's (WiSE-FT)      (1)
#   TEST_FREQ VAL_BEAM_SIZE SAVE_FREQ LOGGER SEED   validation, …                   (50 32 50 console,file 42)
#   N_GPUS NNODES ROLLOUT_TP_SIZE   GPUs a node (-1: all), nodes                                          (-1 1 1)
#   GPU_MEMORY_UTILIZATION   of vLLM                                                                      (0.5)
#   DRY_RUN=1          checks everything and prints verl's whole command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/entry.sh"
here="$(cd "$(dirname "$0")/../.." && pwd)"
: "${PYTHON:=python}"
: "${BENCHMARK_DATA_DIR:=$here/../data/output/benchmark_data}"
: "${PID2SID:=$BENCHMARK_DATA_DIR/video_ad_pid2sid.parquet}"
: "${PRODUCT_PID2SID=$BENCHMARK_DATA_DIR/product_pid2sid.parquet}"
export BASE_MODEL="${BASE_MODEL:-$here/../pretrain/output/sft/hf}"
export DATA_DIR="${DATA_DIR:-$here/../data/output/rl_data}"
export OUTPUT_DIR="${OUTPUT_DIR:-$here/output/grpo}"
export TEST_FREQ="${TEST_FREQ:-50}"
catalogues=(--catalogue "$PID2SID")
[[ -n "$PRODUCT_PID2SID" && -f "$PRODUCT_PID2SID" ]] && catalogues+=(--catalogues "product=$PRODUCT_PID2SID")
command=("$PYTHON" "$here/train_grpo.py" "${catalogues[@]}" "$@")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
exec "${command[@]}"
