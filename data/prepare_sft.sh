#!/usr/bin/env bash
# Mix the sft sources into shuffled shards: cd data && bash prepare_sft.sh. Variables: see mix.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
source "$ROOT/data/mix.sh" sft
