# Sourced by eval_script.sh and general.sh: where the data are read and the results go.
#   BENCHMARK_DATA_DIR  benchmark_data folder of the data stage or of the release (../data/output/benchmark_data)
#   DATA_VERSION        its subfolder of that name, where there is one; noted in the results
#   BENCHMARK_BASE_DIR  where logs and results go (this folder)
#   VERSION             version of the results (v1.0)
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
: "${PYTHON:=python}"
: "${BENCHMARK_BASE_DIR:=$ROOT/benchmarks}"
: "${BENCHMARK_DATA_DIR:=$ROOT/data/output/benchmark_data}"
: "${DATA_VERSION:=}"
: "${VERSION:=v1.0}"
data_dir="$BENCHMARK_DATA_DIR"
if [[ -n "$DATA_VERSION" && -d "$data_dir/$DATA_VERSION" ]]; then data_dir+="/$DATA_VERSION"; fi
