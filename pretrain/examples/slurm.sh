#!/usr/bin/env bash
#SBATCH --job-name=onerec
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
# Any of this folder's scripts on SLURM, one torchrun a node:
#   sbatch --nodes 4 examples/slurm.sh examples/pretrain_stg2.sh
# Variables that the script reads go through the environment (sbatch exports it). Five minutes before the job's time is
# over, and when SLURM takes the nodes back, the training writes a checkpoint after its running step and ends with
# status 75; the job goes back into the queue, and goes on from there, as the scripts pass --resume_from auto. A step
# and a checkpoint that take longer want more than --signal=B:TERM@300, and a partition whose GraceTime is as long.
set -euo pipefail
if (($# < 1)); then
  echo "error: slurm.sh: needs a script; examples/pretrain_stg1.sh, pretrain_stg2.sh or posttrain_sft.sh" >&2
  exit 2
fi
script="$1"
shift
cd "${SLURM_SUBMIT_DIR:-$PWD}"
export NNODES="$SLURM_NNODES" NPROC="${NPROC:-${SLURM_GPUS_ON_NODE:-8}}"
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 40000))}"
stopping=0
# The job's steps, not this shell. (srun itself would take SIGTERM as an order to kill.)
trap 'stopping=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# SLURM_NODEID is each node's own, so it is read there.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK="$SLURM_NODEID" exec bash "$@"' _ "$script" "$@" &
step=$!
while kill -0 "$step" 2> /dev/null; do # a signal ends the wait, not the step
  wait "$step" || true
done
status=0
wait "$step" || status=$? # the step's own, which bash keeps
# The node that ends first has srun kill the others, which then say 128 and more. A cancelled job no longer runs.
if ((status == 75 || (stopping && status > 128))) && [[ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" == RUNNING ]]; then
  echo "stopped; job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
