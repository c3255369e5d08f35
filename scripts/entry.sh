# Sourced first by every shell script that runs code of this repository: whose code runs, and OpenOneRec's words.
#   ROOT   this repository. Its code goes before what the environment was installed from, which may be another clone.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ ":${PYTHONPATH:-}:" == ":$ROOT:"* ]] || export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# Said once: what a script starts inherits the variable.
[[ "${ONEREC_CODE:-}" == "$ROOT" ]] || echo "code: $ROOT"
export ONEREC_CODE="$ROOT"
