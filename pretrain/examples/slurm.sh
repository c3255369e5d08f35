#!/usr/bin/env bash
#SBATCH --job-name=onerec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
# Any of this folder's scripts on SLURM, one torchrun a node: sbatch --nodes 4 examples/slurm.sh examples/pretrain_stg2.sh
# Variables that the script reads go through the environment (sbatch exports it). A job that is requeued goes on from its newest
# checkpoint, as the scripts pass --resume_from auto.
set -euo pipefail
script="${1:?error: slurm.sh: needs a script; examples/pretrain_stg1.sh, pretrain_stg2.sh or posttrain_sft.sh}"
shift
cd "${SLURM_SUBMIT_DIR:-$PWD}"
export NNODES="$SLURM_NNODES" NPROC="${NPROC:-${SLURM_GPUS_ON_NODE:-8}}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 40000))}"
# SLURM_NODEID is each node's own, so it is read there.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK="$SLURM_NODEID" exec bash "$@"' _ "$script" "$@"
