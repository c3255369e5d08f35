#!/usr/bin/env bash
# The three OpenOneRec data sets into the root's raw_data (data/raw_data where that is there): cd data && bash download.sh. Stopped, it goes on where it was.
# HF_ENDPOINT names a mirror, HF_TOKEN a token; DATASETS="recif" takes one of recif, pretrain and sft.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
: "${DATASETS:=recif pretrain sft}"
: "${OUTPUT_DIR:=$(raw_data .)}"
set -x
"$PYTHON" download.py --datasets $DATASETS --output_dir "$OUTPUT_DIR" "$@"
