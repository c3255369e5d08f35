#!/usr/bin/env bash
# 1. Raw logs, captions, embeddings and general text into $RUN_DIR/raw_data. Settings: the profile's world.env.
#   WORLD     toy        made on the spot                                                               (toy)
#             movielens  MovieLens 100k: MOVIELENS_DIR names its folder
#             amazon     Amazon 2014: AMAZON_SEQUENCES and, where given, AMAZON_ATTRIBUTES (item to attribute ids)
#   N_USERS N_VIDEOS N_ADS N_GOODS N_FACTS N_TEXTS   sizes of the toy world, whose general text every world has
#   N_TARGETS WINDOWS VALIDATION   real logs: targets of a training row, rows a user, a target kept for validation (1)
source "$(dirname "$0")/common.sh"
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
  *)
    echo "error: WORLD: $WORLD is not a world; toy, movielens or amazon" >&2
    exit 2
    ;;
esac
run python "$ROOT/data/make_toy_world.py" --output_dir "$RUN_DIR/toy_raw_data"
mkdir -p "$RAW_DATA/general_text"
run cp -r "$RUN_DIR/toy_raw_data/general_text/." "$RAW_DATA/general_text"
