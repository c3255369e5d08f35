# Sourced by the quickstart and the numbered scripts, which run others for long.
# owned <command …>: run a command that ends, with all that it started, when this script does, by a signal or killed.
_running=""
owned() {
  local status=0 alive
  # The keeper of onerec/keeper.py stands between; it ends all below it when nothing holds the other end of its input.
  alive="$(mktemp -u)"
  mkfifo "$alive"
  python3 -I "$(dirname "${BASH_SOURCE[0]}")/../onerec/keeper.py" 45 "$@" < "$alive" &
  _running=$!
  exec 9> "$alive"
  rm -f "$alive"
  wait "$_running" || status=$?
  exec 9>&-
  _running=""
  return "$status"
}

# bash tells a signal while it waits, unlike while a command runs in the foreground.
_end() {
  trap '' HUP INT TERM
  if [[ -n "$_running" ]]; then
    exec 9>&-
    wait "$_running" || true
  fi
  echo "interrupted: run the same command again to go on after the last finished stage" >&2
  exit "$1"
}
trap '_end 130' INT
trap '_end 75' HUP TERM # as onerec/keeper.py
