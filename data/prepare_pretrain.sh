#!/usr/bin/env bash
# Mix the pretrain sources into shuffled shards: cd data && bash prepare_pretrain.sh. Variables: see mix.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/entry.sh"
source "$ROOT/data/mix.sh" pretrain
