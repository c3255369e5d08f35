# Sourced by the launchers: runs train.py with the settings that they name, on one process or under torchrun.
#   MODEL_DIR OUTPUT_DIR DATASET_CONFIG   what to train, where to, on what (SOURCES replaces the config's sources)
#   LEARNING_RATE MIN_LR NUM_WARMUP_STEPS NUM_TRAINING_STEPS NUM_EPOCHS MAX_LENGTH GRADIENT_ACCUMULATION_STEPS SEED
#   LOGGING_PER_STEP SAVE_CHECKPOINT_PER_STEP; GRADIENT_CHECKPOINTING=1 trades a third more time for memory
#   NPROC_PER_NODE NNODES NODE_RANK MASTER_ADDR MASTER_PORT   torchrun, where NPROC_PER_NODE x NNODES is over 1
# A run that was cut goes on from its newest checkpoint (RESUME=0 refuses, OVERWRITE=1 starts over).
: "${PYTHON:=python}"
: "${NPROC_PER_NODE:=1}"
: "${NNODES:=1}"
: "${NODE_RANK:=0}"
: "${MASTER_ADDR:=127.0.0.1}"
: "${MASTER_PORT:=29500}"
: "${RESUME:=1}"
: "${OVERWRITE:=0}"

# launch [train.py's flags]: the flags of the stage, after those of the settings.
launch() {
  local command=("$PYTHON") flags=(--model_dir "$MODEL_DIR" --output_dir "$OUTPUT_DIR" --dataset_config "$DATASET_CONFIG") name
  if ((NPROC_PER_NODE * NNODES > 1)); then
    command=("$PYTHON" -m torch.distributed.run --nproc_per_node "$NPROC_PER_NODE" --nnodes "$NNODES"
      --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  fi
  [[ -n "${SOURCES:-}" ]] && flags+=(--sources $SOURCES)
  for name in LEARNING_RATE MIN_LR NUM_WARMUP_STEPS NUM_TRAINING_STEPS NUM_EPOCHS MAX_LENGTH GRADIENT_ACCUMULATION_STEPS \
    SEED LOGGING_PER_STEP SAVE_CHECKPOINT_PER_STEP; do
    [[ -n "${!name:-}" ]] && flags+=("--${name,,}" "${!name}")
  done
  if [[ "$OVERWRITE" == 1 ]]; then
    flags+=(--overwrite)
  elif [[ "$RESUME" == 1 ]]; then
    flags+=(--resume_from auto --resume_training_state)
  fi
  set -x
  "${command[@]}" "$(dirname "${BASH_SOURCE[0]}")/../train.py" "${flags[@]}" "$@"
}
