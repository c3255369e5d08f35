#!/usr/bin/env bash
# 2. Item embeddings to SIDs: embeddings from the captions (beside those of co-occurrence, where there are any) where the
#    catalogue has none, residual k-means over every domain's items together, then pid to SID of each pid space.
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
run python "$ROOT/tokenizer/train_res_kmeans.py" --data_path "${embeddings[@]}" --model_path "$TOKENIZER_DIR" \
  --n_layers "$N_LAYERS" --codebook_size "$CODEBOOK_SIZE" --dim "$dim" --seed "$SEED"
run python "$ROOT/tokenizer/infer_res_kmeans.py" --model_path "$TOKENIZER_DIR" --emb_path "${embeddings[0]}" \
  --output_path "$items/video_ad_pid2sid.parquet"
if ((${#embeddings[@]} > 1)); then
  run python "$ROOT/tokenizer/infer_res_kmeans.py" --model_path "$TOKENIZER_DIR" --emb_path "${embeddings[1]}" \
    --output_path "$items/product_pid2sid.parquet"
fi
