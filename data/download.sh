#!/usr/bin/env bash
# The three OpenOneRec data sets into the root's raw_data (data/raw_data where that is there):
#   cd data && bash download.sh
# Stopped, it goes on where it was.
#   HF_ENDPOINT HF_TOKEN   a mirror, a token
#   DATASETS     of recif, pretrain and sft  (all three)
#   OUTPUT_DIR   where they go
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
cd "$(dirname "$0")"
: "${PYTHON:=python}"
export OUTPUT_DIR="${OUTPUT_DIR:-$(raw_data .)}"
set -x
"$PYTHON" download.py "$@"
