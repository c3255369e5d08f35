#!/usr/bin/env bash
# 1. Raw logs, captions, embeddings and general text into $RUN_DIR/raw_data. Settings: the profile's world.env.
#   WORLD     toy        made on the spot                                                               (toy)
#             movielens  MovieLens 100k: MOVIELENS_DIR names its folder
#             amazon     Amazon 2014: AMAZON_SEQUENCES and, where given, AMAZON_ATTRIBUTES (item to attribute ids)
#             own        your tables: OWN_ITEMS, OWN_LOGS and OWN_COLUMNS, the latter two a line each (my_catalogue.sh)
#   N_USERS N_VIDEOS N_ADS N_GOODS N_FACTS N_TEXTS   sizes of the toy world, whose general text every world has
#   N_TARGETS WINDOWS VALIDATION   real logs: targets of a training row, rows a user, a target kept for validation (1)
#                                  own: WINDOWS=measured takes what scripts/sizes.py says
#   SPLIT_TIME                     own: from when on events are the test's (every user's last one)
source "$(dirname "$0")/common.sh"
rm -f "$RAW_DATA/sizes.env" # of other tables
settings_of world
case "${WORLD:=toy}" in
  toy)
    run python "$ROOT/data/make_toy_world.py" --output_dir "$RAW_DATA"
    exit
    ;;
  movielens)
    run python "$ROOT/data/adapters/movielens.py" --input "$MOVIELENS_DIR" --output_dir "$RAW_DATA"
    ;;
  amazon)
    run python "$ROOT/data/adapters/amazon2014.py" --sequences "$AMAZON_SEQUENCES" \
      ${AMAZON_ATTRIBUTES:+--attributes "$AMAZON_ATTRIBUTES"} --output_dir "$RAW_DATA"
    ;;
  own)
    mapfile -t logs <<< "$OWN_LOGS"
    columns=()
    [[ -n "${OWN_COLUMNS:-}" ]] && mapfile -t columns <<< "$OWN_COLUMNS" && columns=(--columns "${columns[@]}")
    adapter=(python "$ROOT/data/adapters/own.py" --items "$OWN_ITEMS" --logs "${logs[@]}" ${columns[@]+"${columns[@]}"}
      --output_dir "$RAW_DATA")
    measured=0
    [[ "${WINDOWS:-}" == measured ]] && measured=1 && unset WINDOWS
    run "${adapter[@]}"
    # What settings.py reads from here on, below --set.
    run python "$ROOT/scripts/sizes.py" --data_dir "$RAW_DATA/onerec_data" --output "$RAW_DATA/sizes.env"
    if ((measured)); then # histories may be long enough for several rows a user
      settings_of world
      [[ "$WINDOWS" == 1 ]] || run "${adapter[@]}"
    fi
    ;;
  *)
    echo "error: WORLD: $WORLD is not a world; toy, movielens, amazon or own" >&2
    exit 2
    ;;
esac
echo "a toy world for the general text that comes with it; its users, items and numbers are not used:"
run python "$ROOT/data/make_toy_world.py" --output_dir "$RUN_DIR/toy_raw_data"
mkdir -p "$RAW_DATA/general_text"
run cp -r "$RUN_DIR/toy_raw_data/general_text/." "$RAW_DATA/general_text"
