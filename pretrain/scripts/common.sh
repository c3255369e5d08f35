# Sourced by the shell scripts of this stage: the interpreter, and how a command is printed and started.
#   PYTHON   the interpreter                                         (python)
#   NPROC    processes on this node, one a GPU                       (1)
#   NNODES NODE_RANK MASTER_ADDR MASTER_PORT   several nodes, as torchrun names them   (1 0 127.0.0.1 29500)
# More than one process in all: torchrun (launch.py). Otherwise plain Python, which uses the one GPU or the CPU.
: "${PYTHON:=python}"
: "${NPROC:=1}"
: "${NNODES:=1}"
: "${NODE_RANK:=0}"
: "${MASTER_ADDR:=127.0.0.1}"
: "${MASTER_PORT:=29500}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"

# run <command …>: print the command, then run it.
run() {
  printf '+ %s\n' "$(printf '%q ' "$@")"
  "$@"
}

# launch <script> <flags …>: become a training script on every process, so that a signal reaches it and its exit status is the script's:
#   0   done        2   one line says what is wrong
#   75  SIGTERM ended it (a cluster takes the node back), with a checkpoint: run the same command again to go on        130  Ctrl-C, likewise
launch() {
  local command=("$PYTHON" "$@")
  if (( NPROC * NNODES > 1 )); then
    command=("$PYTHON" launch.py --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$NPROC"
      --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" "$@")
  fi
  printf '+ %s\n' "$(printf '%q ' "${command[@]}")"
  exec "${command[@]}"
}

# train_flags: the variables that every training script shares, as flags of train.py, in the array FLAGS.
#   SOURCES MAX_LENGTH NUM_EPOCHS   replace what the dataset config says (SOURCES with commas between paths)
#   TOKEN_DIR   folder, common or each node's own, for the tokenized data (none: each process keeps them in memory)
#   DROPOUT ATTENTION_DROPOUT   shares that training drops                            (0 0)
#   KEEP_CHECKPOINTS   newest checkpoints kept; -1 keeps all                          (2)
#   ENABLE_GRADIENT_CHECKPOINTING   1 or 0                                            (1 where there is a GPU)
#   PRECISION   bf16, fp32 or auto: bf16 on a GPU that has it                          (auto)
#   RESUME=1     go on from the newest checkpoint in OUTPUT_DIR, where there is one   (1)
train_flags() {
  FLAGS=(--model_dir "$MODEL_DIR" --output_dir "$OUTPUT_DIR" --dataset_config "$DATASET_CONFIG"
    --learning_rate "$LEARNING_RATE" --min_lr "$MIN_LR" --weight_decay "$WEIGHT_DECAY"
    --lr_scheduler_type "$LR_SCHEDULER_TYPE" --num_warmup_steps "$NUM_WARMUP_STEPS"
    --num_training_steps "$NUM_TRAINING_STEPS" --gradient_accumulation_steps "$GRADIENT_ACCUMULATION_STEPS"
    --minibatch_size "$MINIBATCH_SIZE" --logging_per_step "$LOGGING_PER_STEP"
    --save_checkpoint_per_step "$SAVE_CHECKPOINT_PER_STEP" --keep_checkpoints "${KEEP_CHECKPOINTS:-2}"
    --dropout "${DROPOUT:-0}" --attention_dropout "${ATTENTION_DROPOUT:-0}"
    --precision "${PRECISION:-auto}" --seed "$SEED")
  local list
  if [[ -n "${SOURCES:-}" ]]; then
    IFS=',' read -r -a list <<< "$SOURCES"
    FLAGS+=(--sources "${list[@]}")
  fi
  if [[ -n "${TOKEN_DIR:-}" ]]; then FLAGS+=(--token_dir "$TOKEN_DIR"); fi
  if [[ -n "${MAX_LENGTH:-}" ]]; then FLAGS+=(--max_length "$MAX_LENGTH"); fi
  if [[ -n "${NUM_EPOCHS:-}" ]]; then FLAGS+=(--num_epochs "$NUM_EPOCHS"); fi
  if [[ -z "${ENABLE_GRADIENT_CHECKPOINTING:-}" ]]; then
    ENABLE_GRADIENT_CHECKPOINTING="$(command -v nvidia-smi > /dev/null && echo 1 || echo 0)"
  fi
  if [[ "$ENABLE_GRADIENT_CHECKPOINTING" == 1 ]]; then FLAGS+=(--enable_gradient_checkpointing); fi
  if [[ "${RESUME:-1}" == 1 ]]; then FLAGS+=(--resume_from auto --resume_training_state); fi
}
