#!/usr/bin/env bash
#SBATCH --job-name=onerec-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
# What runs on Ray, on SLURM: a Ray cluster over the job's nodes, the script on the first, and an end with it.
#   sbatch --nodes 4 scripts/ray_slurm.sh verl_rl/recipe/onerec/run_grpo.sh
# Variables that the script reads go through the environment (sbatch exports it). A job that is requeued goes on from
# its newest checkpoint, since the scripts resume by themselves. The repository, its environment, models, data and
# OUTPUT_DIR lie on a file system that all nodes share. N_GPUS of a node are the stage's (all, or what a teacher
# leaves). RAY_AUTH_MODE as in ray_start.sh.
set -euo pipefail
if (($# < 1)); then
  echo "error: ray_slurm.sh: needs a script; verl_rl/recipe/onerec/run_grpo.sh" >&2
  exit 2
fi
script="$1"
shift
cd "${SLURM_SUBMIT_DIR:-$PWD}"
: "${VENV:=$PWD/.venv}"
: "${RAY_PORT:=$((20000 + SLURM_JOB_ID % 20000))}"
export PATH="$VENV/bin:$PATH"
export NNODES="$SLURM_NNODES" RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head="${nodes[0]}"
start=(ray start --block --disable-usage-stats)
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap "${start[@]}" --head --node-ip-address="$head" --port="$RAY_PORT" &
if ((NNODES > 1)); then
  sleep 15 # the head listens before the others ask for it
  srun --nodes=$((NNODES - 1)) --ntasks=$((NNODES - 1)) --exclude="$head" --overlap "${start[@]}" --address="$head:$RAY_PORT" &
fi
export RAY_ADDRESS="$head:$RAY_PORT"
# Until every node has joined; a minute a node is more than Ray takes.
for ((i = 0; i < 60 * NNODES; i++)); do
  joined="$(python -c 'import ray; ray.init(logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))' 2>/dev/null || echo 0)"
  ((joined >= NNODES)) && break
  sleep 1
done
((joined >= NNODES)) || { echo "error: Ray: $joined of $NNODES nodes joined; the nodes' ports and network" >&2; exit 2; }
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap bash "$script" "$@"
