# Sourced by prepare_pretrain.sh and prepare_sft.sh with the kind of the mix, pretrain or sft.
#   CONFIG BASE_DIR   the mix's sources, and the folder that their paths start from
#   GENERAL_TEXT_PATH REC_DATA_PATH   other folders, relative to BASE_DIR, than the config's folders of these names
#   ROWS_PER_FILE     rows of a shard (the config's; 1000 where it says none)
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${PYTHON:=python}"
: "${CONFIG:=configs/$1.json}"
: "${BASE_DIR:=.}"
: "${OUTPUT_DIR:=$BASE_DIR/output/split_data_$1}"
: "${ROWS_PER_FILE:=-1}"
: "${SEED:=42}"
: "${BUFFER_MB:=1024}"
# Every rule of the format, SIDs inside their codebooks included where the specification is at hand.
: "${SID_SPEC:=$BASE_DIR/output/benchmark_data/sid_spec.json}"
folders=() spec=()
for name in GENERAL_TEXT_PATH REC_DATA_PATH; do
  if [[ -n "${!name:-}" ]]; then folders+=(--folders "$name=${!name}"); fi
done
[[ -f "$SID_SPEC" ]] && spec=(--sid_spec "$SID_SPEC")
set -x
"$PYTHON" prepare_mix.py --config "$CONFIG" --base_dir "$BASE_DIR" "${folders[@]}" --output_dir "$OUTPUT_DIR" --rows_per_file "$ROWS_PER_FILE" \
  --seed "$SEED" --buffer_mb "$BUFFER_MB"
"$PYTHON" validate.py "$OUTPUT_DIR" "${spec[@]}"
