#!/usr/bin/env bash
# 2. Items to SIDs. SIDS=trained: embeddings where the catalogue has none, residual k-means (or the QUANTIZER of your choice) over
#    every domain's items together, pid to SID of each pid space, what COLLISIONS says of items with one SID.
#    SIDS=imported: the first N_LAYERS of the codes in SID_CODES, which somebody else made; COLLISIONS=own keeps the file's next
#    layer, which numbers the items of a SID. Then a report on the codes.
#    Embeddings are made of the captions (ENCODER; none: without), of co-occurrence where 01_world.sh made it (COOCCURRENCE_WEIGHT; 0:
#    without) and of SID_CODES (CODES_WEIGHT; 0: without).
source "$(dirname "$0")/common.sh"
: "${SEED:=0}"
: "${ENCODER:=tfidf_svd}"
: "${SIDS:=trained}"
: "${SID_CODES:=}"
: "${COOCCURRENCE_WEIGHT:=1}"
: "${CODES_WEIGHT:=0}"
items="$RAW_DATA/onerec_data"
if [[ "$SIDS" == imported ]]; then
  table="$items/video_ad_pid2sid.parquet"
  layers="$N_LAYERS" collision=none
  [[ "$COLLISIONS" == own ]] && layers=$((N_LAYERS + 1)) collision=extra_layer
  run python "$ROOT/tokenizer/import_codes.py" --codes "$SID_CODES" --output_path "$table" --codebook_size "$CODEBOOK_SIZE" \
    --n_layers "$layers" --collision "$collision"
  if [[ "$COLLISIONS" != none && "$COLLISIONS" != own ]]; then
    run python "$ROOT/tokenizer/resolve_collisions.py" --method "$COLLISIONS" --pid2sid "$table" --output_path "$table"
  fi
  run python "$ROOT/tokenizer/evaluate_codes.py" --pid2sid "$table" --caption "$items/pid2caption.parquet" --output_dir "$TOKENIZER_DIR/quality"
  exit
fi
dim="$EMBEDDING_DIM"
if [[ ! -f "$items/item_embedding.parquet" || -f "$items/item_embedding.manifest.json" ]]; then
  concat=()
  [[ "$ENCODER" == none ]] && dim=0
  if [[ -f "$items/item_cooccurrence.parquet" && "$COOCCURRENCE_WEIGHT" != 0 ]]; then
    concat+=("$items/item_cooccurrence.parquet:$COOCCURRENCE_WEIGHT")
    dim=$((dim + EMBEDDING_DIM))
  fi
  if [[ "$CODES_WEIGHT" != 0 ]]; then
    run python "$ROOT/tokenizer/import_codes.py" --codes "$SID_CODES" --output_path "$TOKENIZER_DIR/imported" \
      --codebook_size "$CODES_SIZE" --n_layers "$CODES_LAYERS" --embedding_path "$items/item_codes.parquet" --embedding_dim "$EMBEDDING_DIM" --seed "$SEED"
    concat+=("$items/item_codes.parquet:$CODES_WEIGHT")
    dim=$((dim + EMBEDDING_DIM))
  fi
  ((${#concat[@]})) && concat=(--concat "${concat[@]}")
  run python "$ROOT/tokenizer/embed_items.py" --input "$items/pid2caption.parquet" --output_path "$items/item_embedding.parquet" \
    --encoder "$ENCODER" --dim "$EMBEDDING_DIM" --seed "$SEED" "${concat[@]}"
fi
embeddings=("$items/item_embedding.parquet")
[[ -f "$items/product_embedding.parquet" ]] && embeddings+=("$items/product_embedding.parquet")
trainer=("$ROOT/tokenizer/train_res_kmeans.py")
[[ "$QUANTIZER" != res_kmeans ]] && trainer=("$ROOT/tokenizer/train_baselines.py" --kind "$QUANTIZER")
# shellcheck disable=SC2086  # TOKENIZER_ARGS is a list of flags
run python "${trainer[@]}" --data_path "${embeddings[@]}" --model_path "$TOKENIZER_DIR" \
  --n_layers "$N_LAYERS" --codebook_size "$CODEBOOK_SIZE" --dim "$dim" --seed "$SEED" $TOKENIZER_ARGS
tables=("$items/video_ad_pid2sid.parquet" "$items/product_pid2sid.parquet")
tables=("${tables[@]:0:${#embeddings[@]}}")
for i in "${!embeddings[@]}"; do
  run python "$ROOT/tokenizer/infer_res_kmeans.py" --model_path "$TOKENIZER_DIR" --emb_path "${embeddings[$i]}" --output_path "${tables[$i]}"
done
if [[ "$COLLISIONS" != none ]]; then
  with=()
  [[ "$COLLISIONS" == reassign ]] && with=(--emb_path "${embeddings[@]}" --model_path "$TOKENIZER_DIR")
  run python "$ROOT/tokenizer/resolve_collisions.py" --method "$COLLISIONS" --pid2sid "${tables[@]}" --output_path "${tables[@]}" "${with[@]}"
fi
run python "$ROOT/tokenizer/evaluate_codes.py" --pid2sid "${tables[0]}" --emb_path "${embeddings[0]}" --model_path "$TOKENIZER_DIR" \
  --caption "$items/pid2caption.parquet" --output_dir "$TOKENIZER_DIR/quality"
