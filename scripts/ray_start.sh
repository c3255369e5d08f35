#!/usr/bin/env bash
# One Ray cluster over several machines by plain ssh: bash scripts/ray_start.sh <head> [<worker> …]; then run the stage
# on the head as the last line says. bash scripts/ray_start.sh --stop <head> [<worker> …] ends it.
#   RAY_PORT 6379  RAY_FLAGS  further flags of `ray start`
#   REPO           this repository's folder on every machine (the same path as here)
#   RAY_AUTH_MODE  disabled: whoever reaches the head's port can run code there; token: who has ~/.ray/auth_token, which
#                  must be the same file on every machine (ray get-auth-token --generate)
# Models, data and OUTPUT_DIR lie at the same paths everywhere (a shared file system). The run's variables go along.
set -euo pipefail
: "${RAY_PORT:=6379}"
: "${REPO:=$(cd "$(dirname "$0")/.." && pwd)}"
: "${VENV:=$REPO/.venv}"
: "${RAY_FLAGS:=}"
: "${RAY_AUTH_MODE:=disabled}"
stop=0
[[ "${1:-}" == --stop ]] && stop=1 && shift
source "$(dirname "${BASH_SOURCE[0]}")/argument.sh"
argument "${1:-}" "ray_start.sh: needs the name of the head; bash scripts/ray_start.sh <head> [<worker> …]"
head="$1"
shift

# on <machine> <command>: run and print it.
on() {
  printf '+ ssh %s %s\n' "$1" "$2"
  ssh -o BatchMode=yes "$1" "cd $(printf %q "$REPO") && $2"
}
ray="RAY_AUTH_MODE=$RAY_AUTH_MODE $VENV/bin/ray"
if ((stop)); then
  for machine in "$@" "$head"; do on "$machine" "$ray stop"; done
  exit
fi
on "$head" "$ray start --head --port $RAY_PORT --disable-usage-stats $RAY_FLAGS"
for machine in "$@"; do on "$machine" "$ray start --address $head:$RAY_PORT --disable-usage-stats $RAY_FLAGS"; done
on "$head" "$ray status"
echo "on $head: RAY_ADDRESS=$head:$RAY_PORT RAY_AUTH_MODE=$RAY_AUTH_MODE NNODES=$(($# + 1)) bash verl_rl/recipe/onerec/run_grpo.sh"
