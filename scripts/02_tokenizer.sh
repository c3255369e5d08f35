#!/usr/bin/env bash
# 2. Item embeddings to SIDs: embeddings from the captions (beside those of co-occurrence, where there are any) where the
#    catalogue has none, residual k-means (or the QUANTIZER of your choice) over every domain's items together, pid to SID of each pid
#    space, what COLLISIONS says of items with one SID, and a report on the codes.
source "$(dirname "$0")/common.sh"
: "${SEED:=0}"
: "${ENCODER:=tfidf_svd}"
items="$RAW_DATA/onerec_data"
dim="$EMBEDDING_DIM"
if [[ ! -f "$items/item_embedding.parquet" ]]; then
  concat=()
  if [[ -f "$items/item_cooccurrence.parquet" ]]; then
    concat=(--concat "$items/item_cooccurrence.parquet:${COOCCURRENCE_WEIGHT:-1}")
  fi
  run python "$ROOT/tokenizer/embed_items.py" --input "$items/pid2caption.parquet" --output_path "$items/item_embedding.parquet" \
    --encoder "$ENCODER" --dim "$EMBEDDING_DIM" --seed "$SEED" "${concat[@]}"
fi
[[ -f "$items/item_cooccurrence.parquet" ]] && dim=$((2 * EMBEDDING_DIM))
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
