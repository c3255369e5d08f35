# Sourced by the quickstart and the numbered scripts, which run others for long.
# owned <command …>: run a command that ends, with all that it started, when this script does, by a signal or killed.
# owned_beside <command …>: the same, beside what comes next; owned_end waits for it and has its status. One at a time.
_running="" _beside=""
owned() {
  local status=0 alive
  # The keeper of onerec/keeper.py stands between; it ends all below it when nothing holds the other end of its input.
  alive="$(mktemp -u)"
  mkfifo "$alive"
  python3 -I "$(dirname "${BASH_SOURCE[0]}")/../onerec/keeper.py" 45 "$@" < "$alive" 7>&- &
  _running=$!
  exec 9> "$alive"
  rm -f "$alive"
  wait "$_running" || status=$?
  exec 9>&-
  _running=""
  return "$status"
}

owned_beside() {
  local alive
  alive="$(mktemp -u)"
  mkfifo "$alive"
  python3 -I "$(dirname "${BASH_SOURCE[0]}")/../onerec/keeper.py" 45 "$@" < "$alive" &
  _beside=$!
  exec 7> "$alive"
  rm -f "$alive"
}

owned_end() {
  local status=0
  [[ -n "$_beside" ]] || return 0
  wait "$_beside" || status=$?
  exec 7>&-
  _beside=""
  return "$status"
}

# bash tells a signal while it waits, unlike while a command runs in the foreground.
_end() {
  trap '' HUP INT TERM
  exec 9>&- 7>&-
  for _running in $_running $_beside; do
    wait "$_running" || true
  done
  echo "interrupted: run the same command again to go on after the last finished stage" >&2
  exit "$1"
}
trap '_end 130' INT
trap '_end 75' HUP TERM # as onerec/keeper.py
