#!/usr/bin/env bash
# 1. Raw logs, captions, embeddings and general text into $RUN_DIR/raw_data: the toy world, or MovieLens 100k where
#    MOVIELENS_DIR names its folder (the general text is the toy world's either way).
source "$(dirname "$0")/common.sh"
: "${SEED:=0}"
world=(python "$ROOT/data/make_toy_world.py" --seed "$SEED" --n_users "$N_USERS" --n_videos "$N_VIDEOS" --n_ads "$N_ADS"
  --n_goods "$N_GOODS" --n_facts "$N_FACTS" --n_texts "$N_TEXTS")
if [[ -z "${MOVIELENS_DIR:-}" ]]; then
  run "${world[@]}" --output_dir "$RAW_DATA"
else
  run python "$ROOT/data/adapters/movielens.py" --input "$MOVIELENS_DIR" --output_dir "$RAW_DATA" --windows "${MOVIELENS_WINDOWS:-1}"
  run python "$ROOT/data/cooccurrence.py" --input "$RAW_DATA/onerec_data/onerec_bench_release.parquet" \
    --output_path "$RAW_DATA/onerec_data/item_cooccurrence.parquet" --dim "$EMBEDDING_DIM" --seed "$SEED"
  run "${world[@]}" --output_dir "$RUN_DIR/toy_raw_data"
  rm -rf "$RAW_DATA/general_text"
  run cp -r "$RUN_DIR/toy_raw_data/general_text" "$RAW_DATA/general_text"
fi
