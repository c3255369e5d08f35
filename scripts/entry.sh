# Sourced first by every shell script that runs code of this repository: whose code runs, and OpenOneRec's words.
#   ROOT   this repository. Its code goes before what the environment was installed from, which may be another clone.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ ":${PYTHONPATH:-}:" == ":$ROOT:"* ]] || export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# Only the script that a user calls says it; those that it starts inherit the variable.
_called=1
if [[ "${ONEREC_CODE:-}" == "$ROOT" ]]; then _called=0; else echo "code: $ROOT"; fi
export ONEREC_CODE="$ROOT"

# _words <script>: OpenOneRec's variables, from the table of docs/from_openonerec.md: one of another name here is taken
# under both, one that has no place here is refused in one line (not in a chain, where it may be another stage's).
_words() {
  [[ -f "$ROOT/docs/from_openonerec.md" ]] || return 0
  local head old new how what mine=0 refused=0
  while IFS='|' read -r head old new how what _; do
    if [[ "$head" == '#'* ]]; then
      mine=0
      if [[ "$head" == *"\`$1\`"* ]]; then mine=1; fi
    fi
    old="${old//[\` ]/}" new="${new//\`/}" what="${what//\`/}"
    new="${new# }" new="${new% }" what="${what# }" what="${what% }"
    if ((!mine)) || [[ ! "$old" =~ ^[A-Z][A-Z0-9_]*$ || -z "${!old:-}" ]]; then continue; fi
    if [[ "$how" == ' works ' ]]; then
      [[ -n "${!new:-}" ]] || export "$new=${!old}"
    elif ((_called)); then
      refused=2
      [[ "$new" == – ]] || what="$new: $what"
      echo "error: $old: is OpenOneRec's; $what" >&2
    fi
  done < "$ROOT/docs/from_openonerec.md"
  return "$refused"
}
_script="$(cd "$(dirname "$0")" 2>/dev/null && pwd)/$(basename -- "$0")" || true
_words "${_script#"$ROOT/"}" || exit

# raw_data <folder>: its raw_data where there is one, otherwise that of the repository's root, where OpenOneRec's
# commands download to.
raw_data() {
  if [[ -d "$1/raw_data" ]]; then echo "$1/raw_data"; else echo "$ROOT/raw_data"; fi
}
