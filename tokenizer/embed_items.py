"""Item text to embeddings, for a catalogue that comes without: a Hugging Face text encoder, or TF-IDF and SVD.

    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder /models/Qwen3-Embedding-0.6B --dim 1024
    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder tfidf_svd --dim 64

The text of an item is a column, or several put into --template ("{title}. {genre}"). Qwen3-Embedding: left padding, the
last token's hidden state, L2-normalised (arXiv 2506.05176, section 2); --pooling mean for sentence-transformers models.
"""

from __future__ import annotations

import argparse
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from onerec.errors import InputError, cli
from onerec.parquet import list_parquet, open_parquet, read_table, write_table
from onerec.run import Manifest, progress

TFIDF_SVD = "tfidf_svd"
TEXT_COLUMNS = ("dense_caption", "caption", "text", "title")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", required=True, help="Parquet file or folder with pid and text columns")
    parser.add_argument("--output_path", type=Path, required=True, help="Parquet file with pid and embedding")
    parser.add_argument(
        "--text_column", default="", help=f"text column (default: the first of {', '.join(TEXT_COLUMNS)})"
    )
    parser.add_argument("--template", default="", help='text from several columns, as "{title}. {genre}"')
    parser.add_argument(
        "--encoder", default=TFIDF_SVD, help=f"path or hub name of an HF text encoder, or {TFIDF_SVD}"
    )
    parser.add_argument(
        "--pooling",
        choices=("auto", "last", "mean"),
        default="auto",
        help="auto: last for decoders, mean else",
    )
    parser.add_argument(
        "--concat",
        nargs="*",
        default=[],
        metavar="FILE[:WEIGHT]",
        help="other embeddings of the same items to put beside the text's, each scaled to length WEIGHT (1)",
    )
    parser.add_argument("--instruction", default="", help="prefix of every text")
    parser.add_argument(
        "--dim", type=int, default=-1, help="dimensions kept (Matryoshka; -1: all; 64 for tfidf_svd)"
    )
    parser.add_argument("--batch_size", type=int, default=32, help="texts encoded at a time")
    parser.add_argument("--max_tokens", type=int, default=512, help="longer texts are cut")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--seed", type=int, default=0, help="seed of the SVD")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    return parser.parse_args(argv)


def read_texts(args: argparse.Namespace, manifest: Manifest) -> tuple[list[int], list[str]]:
    """(pids, texts); rows without text and pids that come again are dropped and counted."""
    pids, texts, seen, total = [], [], set(), 0
    for file in list_parquet(args.input):
        names = open_parquet(file, ["pid"]).schema_arrow.names
        template = (
            args.template
            or "{"
            + (args.text_column or next((c for c in TEXT_COLUMNS if c in names), TEXT_COLUMNS[0]))
            + "}"
        )
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        table = read_table(file, ["pid", *dict.fromkeys(fields)])
        manifest.input(file, table.num_rows)
        total += table.num_rows
        for row in table.to_pylist():
            values = {field: "" if row[field] is None else str(row[field]) for field in fields}
            if not any(value.strip() for value in values.values()):
                manifest.drop("text is empty")
            elif row["pid"] is None or row["pid"] in seen:
                manifest.drop("pid is null or stands twice")
            else:
                seen.add(row["pid"])
                pids.append(int(row["pid"]))
                texts.append(args.instruction + template.format(**values))
    manifest.check_bad_ratio(args.input, sum(manifest.dropped.values()), total, args.max_bad_ratio)
    if not texts:
        raise InputError(args.input, "holds no text", "at least one item with text")
    return pids, texts


def tfidf_svd(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length: TF-IDF over words and Chinese character pairs, reduced by truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word of Latin letters or digits, or two neighbouring Chinese characters (a lookahead lets them overlap).
    pattern = r"(?u)([^\W_\u4e00-\u9fff]+|[\u4e00-\u9fff](?=[\u4e00-\u9fff]))"
    grams = TfidfVectorizer(
        token_pattern=pattern, ngram_range=(1, 2), sublinear_tf=True, min_df=min(2, len(texts))
    )
    try:
        matrix = grams.fit_transform(texts)
    except ValueError as error:
        raise InputError("--encoder", f"{TFIDF_SVD} finds no words ({error})", "texts with words") from None
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:
        raise InputError("--encoder", f"{TFIDF_SVD} needs at least two different texts", "more items")
    vectors = TruncatedSVD(rank, random_state=seed).fit_transform(matrix)
    return unit(np.pad(vectors, ((0, 0), (0, dim - rank))))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; rows of zeros stay zeros."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm == 0, 1, norm)).astype(np.float32)


def concatenated(pids: Sequence[int], vectors: np.ndarray, others: Sequence[str]) -> np.ndarray:
    """``vectors`` with the embeddings of other files beside them, unit length; an item that a file lacks gets zeros there."""
    parts = [vectors]
    for other in others:
        name, _, weight = other.partition(":")
        try:
            scale = float(weight or 1)
        except ValueError:
            raise InputError("--concat", f"{other} has the weight {weight}", "FILE or FILE:WEIGHT") from None
        table = read_table(name, ["pid", "embedding"])
        rows = {pid: row for row, pid in enumerate(table["pid"].to_pylist())}
        found = np.stack(table["embedding"].to_numpy()).astype(np.float32)
        places = np.array([rows.get(pid, -1) for pid in pids])
        parts.append(scale * np.where(places[:, None] >= 0, unit(found)[places], 0))
    return unit(np.concatenate(parts, axis=1))


def load_encoder(name: str) -> tuple[Any, Any]:
    """(tokenizer, model) by local path or hub name; raises `InputError` where it cannot be had."""
    from transformers import AutoModel, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, padding_side="left"), AutoModel.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            "--encoder",
            f"{name} cannot be loaded ({reason})",
            f"a local folder, a hub name with network, or {TFIDF_SVD}",
        ) from None


def hf_encode(texts: Sequence[str], args: argparse.Namespace) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length, by an HF encoder; texts are batched by length."""
    import torch

    tokenizer, model = load_encoder(args.encoder)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    model = model.to(device, torch.bfloat16 if device.startswith("cuda") else torch.float32).eval()
    decoder = "Causal" in (model.config.architectures or [""])[0] or getattr(
        model.config, "model_type", ""
    ).startswith("qwen")
    pooling = ("last" if decoder else "mean") if args.pooling == "auto" else args.pooling
    if args.dim > model.config.hidden_size:
        raise InputError(
            "--dim", f"{args.dim} is more than the encoder gives", f"at most {model.config.hidden_size}"
        )
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    batches = [order[i : i + args.batch_size] for i in range(0, len(order), args.batch_size)]
    out = np.zeros((len(texts), args.dim if args.dim > 0 else model.config.hidden_size), np.float32)
    for batch in progress(batches, "embed", len(texts), "text", size=len):
        coded = tokenizer(
            [texts[i] for i in batch],
            padding=True,
            truncation=True,
            max_length=args.max_tokens,
            return_tensors="pt",
        ).to(device)
        with torch.inference_mode():
            hidden = model(**coded).last_hidden_state.float()
        mask = coded["attention_mask"].unsqueeze(-1)
        # Left padding puts every text's last token in the last column.
        pooled = hidden[:, -1] if pooling == "last" else (hidden * mask).sum(1) / mask.sum(1)
        out[batch] = pooled[:, : out.shape[1]].cpu().numpy()
    return unit(out)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.batch_size < 1 or args.max_tokens < 1 or args.dim == 0 or args.dim < -1:
        raise InputError(
            "--batch_size, --max_tokens, --dim", "are not positive numbers", "at least 1 (--dim -1: all)"
        )
    manifest = Manifest("embed_items", args)
    pids, texts = read_texts(args, manifest)
    if args.encoder == TFIDF_SVD:
        vectors = tfidf_svd(texts, args.dim if args.dim > 0 else 64, args.seed)
    else:
        vectors = hf_encode(texts, args)
    if args.concat:
        vectors = concatenated(pids, vectors, args.concat)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    write_table(args.output_path, pa.table({"pid": pa.array(pids, pa.int64()), "embedding": lists}))
    manifest.output(args.output_path, len(pids))
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    print(
        f"embedded {len(pids):,} items, {vectors.shape[1]} dimensions, in {args.output_path}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
