# Sourced by the shell scripts of this stage: the interpreter, and how a command is printed and started.
#   PYTHON   the interpreter                                         (python)
#   NPROC    processes on this node, one a GPU                       (1)
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   several nodes, as torchrun names them   (1 0 127.0.0.1 29500)
# More than one process in all: torchrun (launch.py). Otherwise plain Python, on one GPU or the CPU. CUDA_VISIBLE_DEVICES=2,3 chooses GPUs.
: "${PYTHON:=python}"
: "${NPROC:=1}"
: "${NNODES:=1}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# run <command …>: print the command, then run it.
run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  "$@"
}

# train <flags …>: become train.py on every process, so that a signal reaches it and its exit status is the script's:
#   0   done        2   one line says what is wrong
#   75  SIGTERM ended it (a cluster takes the node back), with a checkpoint: run the same command again to go on
#   130 Ctrl-C, likewise
# Flags of train.py are variables too, as its --help says: LEARNING_RATE=1e-3, SOURCES=a,b.
#   RESUME=1     go on from the newest checkpoint in OUTPUT_DIR, where there is one
train() {
  local command=("$PYTHON")
  if ((NPROC * NNODES > 1)); then
    command+=(launch.py --nnodes "$NNODES" --node_rank "${NODE_RANK:-0}" --nproc_per_node "$NPROC"
      --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${MASTER_PORT:-29500}")
  fi
  command+=(train.py)
  if [[ "${RESUME:-1}" == 1 ]]; then command+=(--resume_from auto --resume_training_state); fi
  command+=("$@")
  printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
  exec "${command[@]}"
}
