# Sourced by the scripts that take arguments.
# argument <value> <message>: stop with "error: <message>" and status 2 where an argument is missing.
argument() {
  if [[ -z "$1" ]]; then
    echo "error: $2" >&2
    exit 2
  fi
}
