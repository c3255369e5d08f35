#!/usr/bin/env bash
# 2. Items to SIDs, then a report on the codes. Settings: the profile's tokenizer.env.
#   SIDS         trained here, or imported: the first N_LAYERS of the codes in SID_CODES                  (trained)
#   N_LAYERS CODEBOOK_SIZE BALANCED   of the quantiser that is trained
#                CODEBOOK_SIZE=measured: the smallest at which no more than MAX_COLLISIONS of the items collide   (0.1)
#   QUANTIZER    res_kmeans, or pq, opq, rq_vae to compare                                                (res_kmeans)
#   COLLISIONS   items with one SID: none, reassign, extra_layer; imported: own keeps the file's layer     (none)
#   EMBEDDING_DIM ENCODER   embeddings of the captions: tfidf_svd, a model's folder, none                 (64 tfidf_svd)
#   COOCCURRENCE_WEIGHT     beside them, embeddings of what is watched together in training; 0: without   (0)
#   CODES_WEIGHT CODES_LAYERS CODES_SIZE   and of the codes in SID_CODES                                  (0 3 256)
source "$(dirname "$0")/common.sh"
settings_of tokenizer
: "${SIDS:=trained}" "${SID_CODES:=}" "${N_LAYERS:=3}" "${QUANTIZER:=res_kmeans}" "${COLLISIONS:=none}"
: "${EMBEDDING_DIM:=64}" "${ENCODER:=tfidf_svd}" "${COOCCURRENCE_WEIGHT:=0}" "${CODES_WEIGHT:=0}" "${CODES_LAYERS:=3}" "${CODES_SIZE:=256}"
items="$RAW_DATA/onerec_data"
if [[ "$SIDS" == imported ]]; then
  table="$items/video_ad_pid2sid.parquet"
  layers="$N_LAYERS" collision=none
  [[ "$COLLISIONS" == own ]] && layers=$((N_LAYERS + 1)) collision=extra_layer
  run python "$ROOT/tokenizer/import_codes.py" --codes "$SID_CODES" --output_path "$table" --n_layers "$layers" \
    --collision "$collision"
  if [[ "$COLLISIONS" != none && "$COLLISIONS" != own ]]; then
    run python "$ROOT/tokenizer/resolve_collisions.py" --method "$COLLISIONS" --pid2sid "$table" --output_path "$table"
  fi
  run python "$ROOT/tokenizer/evaluate_codes.py" --pid2sid "$table" --caption "$items/pid2caption.parquet" \
    --output_dir "$TOKENIZER_DIR/quality"
  exit
fi
# One embedding an item, of the parts side by side; the world may bring its own.
dim="$EMBEDDING_DIM"
if [[ ! -f "$items/item_embedding.parquet" || -f "$items/item_embedding.manifest.json" ]]; then
  [[ "$ENCODER" == none ]] && dim=0
  parts=()
  if [[ "$COOCCURRENCE_WEIGHT" != 0 ]]; then
    run python "$ROOT/data/cooccurrence.py" --input "$items/onerec_bench_release.parquet" \
      --output_path "$items/item_cooccurrence.parquet" --dim "$EMBEDDING_DIM"
    parts+=("$items/item_cooccurrence.parquet:$COOCCURRENCE_WEIGHT")
  fi
  if [[ "$CODES_WEIGHT" != 0 ]]; then
    run python "$ROOT/tokenizer/import_codes.py" --codes "$SID_CODES" --output_path "$TOKENIZER_DIR/imported" \
      --codebook_size "$CODES_SIZE" --n_layers "$CODES_LAYERS" --embedding_path "$items/item_codes.parquet"
    parts+=("$items/item_codes.parquet:$CODES_WEIGHT")
  fi
  dim=$((dim + ${#parts[@]} * EMBEDDING_DIM))
  ((${#parts[@]})) && parts=(--concat "${parts[@]}")
  run python "$ROOT/tokenizer/embed_items.py" --input "$items/pid2caption.parquet" \
    --output_path "$items/item_embedding.parquet" --encoder "$ENCODER" --dim "$EMBEDDING_DIM" "${parts[@]}"
fi
embeddings=("$items/item_embedding.parquet")
[[ -f "$items/product_embedding.parquet" ]] && embeddings+=("$items/product_embedding.parquet")
if [[ "${CODEBOOK_SIZE:-}" == measured ]]; then
  run python "$ROOT/tokenizer/choose_sizes.py" --data_path "${embeddings[@]}" --output_path "$TOKENIZER_DIR/sizes.json" --dim "$dim"
  read -r CODEBOOK_SIZE < <(python -c 'import json, sys
print(json.load(open(sys.argv[1]))["codebook_size"])' "$TOKENIZER_DIR/sizes.json")
fi
trainer=("$ROOT/tokenizer/train_res_kmeans.py")
[[ "$QUANTIZER" != res_kmeans ]] && trainer=("$ROOT/tokenizer/train_baselines.py" --kind "$QUANTIZER")
run python "${trainer[@]}" --data_path "${embeddings[@]}" --model_path "$TOKENIZER_DIR" --dim "$dim"
tables=("$items/video_ad_pid2sid.parquet" "$items/product_pid2sid.parquet")
tables=("${tables[@]:0:${#embeddings[@]}}")
for i in "${!embeddings[@]}"; do
  run python "$ROOT/tokenizer/infer_res_kmeans.py" --model_path "$TOKENIZER_DIR" --emb_path "${embeddings[$i]}" \
    --output_path "${tables[$i]}"
done
if [[ "$COLLISIONS" != none ]]; then
  with=()
  [[ "$COLLISIONS" == reassign ]] && with=(--emb_path "${embeddings[@]}" --model_path "$TOKENIZER_DIR")
  run python "$ROOT/tokenizer/resolve_collisions.py" --method "$COLLISIONS" --pid2sid "${tables[@]}" \
    --output_path "${tables[@]}" "${with[@]}"
fi
run python "$ROOT/tokenizer/evaluate_codes.py" --pid2sid "${tables[0]}" --emb_path "${embeddings[0]}" \
  --model_path "$TOKENIZER_DIR" --caption "$items/pid2caption.parquet" --output_dir "$TOKENIZER_DIR/quality"
