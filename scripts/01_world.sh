#!/usr/bin/env bash
# 1. Raw logs, captions, embeddings and general text into $RUN_DIR/raw_data. WORLD says whose logs (the general text is the toy
#    world's either way):
#      toy        made on the spot
#      movielens  MovieLens 100k: MOVIELENS_DIR names its folder
#      amazon     Amazon 2014: AMAZON_SEQUENCES, and where they are at hand AMAZON_ATTRIBUTES (item to attribute ids)
source "$(dirname "$0")/common.sh"
: "${SEED:=0}"
world=(python "$ROOT/data/make_toy_world.py" --seed "$SEED" --n_users "$N_USERS" --n_videos "$N_VIDEOS" --n_ads "$N_ADS"
  --n_goods "$N_GOODS" --n_facts "$N_FACTS" --n_texts "$N_TEXTS")
case "$WORLD" in
  toy)
    run "${world[@]}" --output_dir "$RAW_DATA"
    exit
    ;;
  movielens)
    run python "$ROOT/data/adapters/movielens.py" --input "$MOVIELENS_DIR" --output_dir "$RAW_DATA" \
      --windows "${MOVIELENS_WINDOWS:-1}" --validation "$((VALIDATION_USERS > 0))"
    ;;
  amazon)
    attributes=()
    [[ -n "${AMAZON_ATTRIBUTES:-}" ]] && attributes=(--attributes "$AMAZON_ATTRIBUTES")
    run python "$ROOT/data/adapters/amazon2014.py" --sequences "$AMAZON_SEQUENCES" "${attributes[@]}" --output_dir "$RAW_DATA" \
      --n_targets "${AMAZON_TARGETS:-10}" --windows "${AMAZON_WINDOWS:-1}"
    ;;
  *)
    echo "error: WORLD: $WORLD is not a world; toy, movielens or amazon" >&2
    exit 2
    ;;
esac
run python "$ROOT/data/cooccurrence.py" --input "$RAW_DATA/onerec_data/onerec_bench_release.parquet" \
  --output_path "$RAW_DATA/onerec_data/item_cooccurrence.parquet" --dim "$EMBEDDING_DIM" --seed "$SEED"
run "${world[@]}" --output_dir "$RUN_DIR/toy_raw_data"
mkdir -p "$RAW_DATA/general_text"
run cp -r "$RUN_DIR/toy_raw_data/general_text/." "$RAW_DATA/general_text"
