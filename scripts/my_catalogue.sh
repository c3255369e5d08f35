#!/usr/bin/env bash
# Your own catalogue: two tables to SIDs, a trained model, its evaluation beside the baselines, and the report:
#   bash scripts/my_catalogue.sh --items items.parquet --logs events.csv
#   --items <path>     a row an item: an id, a title, perhaps description, brand, category
#   --logs <path>      a row an event (user, item, time, perhaps action, query) or a history (user, list, target); several
#                      paths, files of one split each, as train=<path> valid=<path> test=<path>
#   --columns <role>=<column>   where a column has another name than the usual ones: item=asin text=title+features …
#   --run_dir --seed --set --fresh --rl   as quickstart.sh, whose steps and resuming these are (runs/own)
# A path is a Parquet, JSON lines or CSV file, or a folder of them. Split: your own (a column split, or files of one), by
# a time (--set world.SPLIT_TIME=2024-06-01), else every user's last event. Settings: scripts/profiles/own/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/entry.sh"
source "$ROOT/scripts/argument.sh"

# absolute <path>: from where the user is; a split before it stays, whatever its word.
absolute() {
  if [[ "$1" =~ ^[a-z0-9]+= && ! -e "$1" ]]; then
    echo "${1%%=*}=$(realpath -m -- "${1#*=}")"
  else
    realpath -m -- "$1"
  fi
}

items="" logs="" columns="" passed=() role_value='^[a-z]+=.+'
while (($#)); do
  case "$1" in
    --items) argument "${2:-}" "--items: needs a table; --items items.parquet"; items="$(absolute "$2")"; shift ;;
    --logs)
      argument "${2:-}" "--logs: needs a table; --logs events.csv"
      while [[ -n "${2:-}" && "$2" != --* ]]; do logs+="${logs:+$'\n'}$(absolute "$2")"; shift; done
      ;;
    --columns)
      argument "${2:-}" "--columns: needs role=column; --columns item=asin"
      [[ "$2" =~ $role_value ]] || argument "" "--columns: needs role=column; --columns item=asin"
      while [[ "${2:-}" =~ $role_value ]]; do columns+="${columns:+$'\n'}$2"; shift; done
      ;;
    --run_dir | --seed | --set) argument "${2:-}" "$1: needs a value; $1 <value>"; passed+=("$1" "$2"); shift ;;
    --fresh | --rl | --no-rl) passed+=("$1") ;;
    *)
      echo "error: $1: is not a flag of my_catalogue.sh; --items, --logs, --columns, --run_dir, --seed, --set, --fresh or --rl" >&2
      exit 2
      ;;
  esac
  shift
done
argument "$items" "--items: is missing; my_catalogue.sh --items items.parquet --logs events.csv"
argument "$logs" "--logs: is missing; my_catalogue.sh --items items.parquet --logs events.csv"
# What the tables are, so that a run does not go on with what an older version of them gave.
OWN_TABLES="$(tr '\n' '\0' <<< "$items"$'\n'"$logs" | xargs -0 python3 -c 'import os, re, sys, time
paths = [re.sub("^[a-z0-9]+=(?=/)", "", path) for path in sys.argv[1:]]
below = [os.path.join(top, name) for path in paths for top, _, names in os.walk(path) for name in names]
known = [os.stat(path) for path in dict.fromkeys(paths + below) if os.path.isfile(path)]
changed = time.strftime("%F %T", time.localtime(max((each.st_mtime for each in known), default=0)))
print(f"{len(known)} files, {sum(each.st_size for each in known)} bytes, changed {changed}")')"
export OWN_TABLES OWN_ITEMS="$items" OWN_LOGS="$logs" OWN_COLUMNS="$columns" PROFILE="${PROFILE:-own}" RL="${RL:-0}"
export RUN_DIR="${RUN_DIR:-$ROOT/runs/own}"
exec bash "$ROOT/scripts/quickstart.sh" ${passed[@]+"${passed[@]}"}
