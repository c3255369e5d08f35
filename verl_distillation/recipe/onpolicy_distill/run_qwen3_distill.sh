#!/usr/bin/env bash
# On-policy distillation:
#   cd verl_distillation && BASE_MODEL=… TEACHER_MODEL=… bash recipe/onpolicy_distill/run_qwen3_distill.sh [host file]
# A host file, one node a line, says NNODES; the nodes are those of the Ray cluster (scripts/ray_start.sh).
# Flags of distill.py are variables too, as its --help says, or follow here. Paths are relative to verl_distillation/.
#   BASE_MODEL TEACHER_MODEL   the student, a checkpoint with SIDs, and the LLM that it was made from
#   DATASET_PARQUET OUTPUT_DIR the prompts, and where to   (../data/output/onpolicy_distillation.parquet output/distill)
#   ANCHOR_PARQUET ANCHOR_SHARE   prompts that the student as it came teaches, a file a line; their share (none 0.25)
#   LOSS TOPK                  reverse_kl, or forward_kl_topk of the teacher's likeliest tokens    (reverse_kl 32)
#   DISTILL_ADV_MIN DISTILL_ADV_MAX   advantages are cut to these                                  (-30 5)
#   EXTEND_VOCAB_START_TOKEN   first id that the teacher has not; -1 takes it from the student's sid_spec.json   (-1)
#   MASK_RESPONSE_IF_HAVE_EXTEND_TOKEN   True: one such token masks its whole response            (False)
#   THINK_MODE TEMPERATURE ROLLOUT_N MAX_PROMPT_LENGTH RESPONSE_LENGTH   of the answers           (auto 1 1 2048 2048)
#   ROLLOUT                    who writes and scores them: vllm, or transformers on a CPU             (auto: by the machine)
#   LEARNING_RATE LR_SCHEDULER_TYPE WARMUP_STEPS                         of AdamW                 (1e-6 constant 0)
#   TRAIN_BATCH_SIZE MINI_BATCH_SIZE TOTAL_STEPS MAX_TOKENS_PER_GPU      prompts a step, an update (256 all 200 16384)
#   SAVE_FREQ KEEP_CHECKPOINTS RESUME SEED                               checkpoints              (50 2 True 42)
#   MERGE_RATIO                share of the distilled weights in what is exported; the rest are BASE_MODEL's     (1)
#   N_GPUS NNODES ROLLOUT_TP_SIZE   the student's: training and rollout share them; -1: what the teachers leave (-1 1 1)
#   TEACHER_N_GPUS TEACHER_NNODES TEACHER_TP_SIZE   the teacher's own                              (1 1 1)
#   DRY_RUN=1                  checks everything and prints verl's command
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/entry.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${PYTHON:=python}"
if [[ $# -gt 0 && "$1" != -* ]]; then
  if [[ ! -f "$1" ]]; then
    echo "error: $1: no such host file; one with a node a line, or NNODES=<nodes>" >&2
    exit 2
  fi
  export NNODES="${NNODES:-$(grep -c '[^[:space:]]' "$1")}"
  shift
fi
for name in BASE_MODEL TEACHER_MODEL; do
  if [[ -z "${!name:-}" ]]; then
    echo "error: $name: is not set; give a checkpoint folder" >&2
    exit 2
  fi
done
export DATASET_PARQUET="${DATASET_PARQUET:-../data/output/onpolicy_distillation.parquet}"
export OUTPUT_DIR="${OUTPUT_DIR:-output/distill}"
command=("$PYTHON" distill.py "$@")
printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
exec "${command[@]}"
