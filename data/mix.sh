# Sourced by prepare_pretrain.sh and prepare_sft.sh with the kind of the mix, pretrain or sft.
#   CONFIG BASE_DIR   the mix's sources, and the folder that their paths start from  (configs/<kind>.json .)
#   OUTPUT_DIR        the shards                                                  (output/split_data_<kind> of BASE_DIR)
#   GENERAL_TEXT_PATH REC_DATA_PATH   other folders, relative to BASE_DIR, than the config's folders of these names
#   ROWS_PER_FILE     rows of a shard              (the config's; 1000 where it says none)
#   SEED BUFFER_MB    of the shuffle               (42 1024)
#   RUNNER            ray: tasks of a Ray cluster (docs/cluster.md), BUFFER_MB each  (local)
#   SID_SPEC          checks SIDs against their codebooks, where there is such a file
cd "$(dirname "${BASH_SOURCE[0]}")"
: "${PYTHON:=python}"
set -a # Python reads these
: "${BASE_DIR:=.}"
: "${OUTPUT_DIR:=$BASE_DIR/output/split_data_$1}"
: "${SID_SPEC:=$BASE_DIR/output/benchmark_data/sid_spec.json}"
[[ -f "$SID_SPEC" ]] || SID_SPEC=""
set +a
folders=()
for name in GENERAL_TEXT_PATH REC_DATA_PATH; do
  if [[ -n "${!name:-}" ]]; then folders+=(--folders "$name=${!name}"); fi
done
set -x
"$PYTHON" prepare_mix.py --config "${CONFIG:-configs/$1.json}" "${folders[@]}"
"$PYTHON" validate.py "$OUTPUT_DIR"
