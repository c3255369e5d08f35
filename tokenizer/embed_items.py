"""Item text to embeddings, for a catalogue that comes without: a Hugging Face text encoder, or TF-IDF and SVD.

    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder /models/Qwen3-Embedding-0.6B --dim 1024
    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder tfidf_svd --dim 64
    torchrun --nproc_per_node 8 embed_items.py --input captions/ --output_path embeddings --encoder Qwen/Qwen3-Embedding-8B

The text of an item is a column, or several put into --template ("{title}. {genre}"). The input is read as a stream, in shards of
--shard_rows rows; a shard is written when it is whole, and the same command goes on with those that are missing. Output: one file,
or a folder of shards where --output_path has no .parquet ending. Qwen3-Embedding wants no instruction for items (documents);
for queries it is "Instruct: <task>\\nQuery:". TF-IDF and SVD need all texts at once.
"""

from __future__ import annotations

import argparse
import datetime
import os
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.content import files_digest, model_digest
from onerec.distributed import process_group
from onerec.errors import InputError
from onerec.files import shard_name
from onerec.flags import COUNT, SEED, ArgumentParser, integer
from onerec.folders import LOCK, locked, remove_folder
from onerec.parquet import (
    Kind,
    count_rows,
    iter_batches,
    list_parquet,
    open_parquet,
    write_batches,
    write_table,
)
from onerec.run import Manifest, processes, read_json, write_json
from tokenizer.embeddings import ALL_ZERO, FirstOfPid, embedding_dim, iter_embeddings
from tokenizer.quantizer import unit

if TYPE_CHECKING:
    from tokenizer.text_encoder import TextEncoder

TFIDF_SVD = "tfidf_svd"
NO_TEXT = "none"  # nothing of the text: what --concat names, alone
TEXT_COLUMNS = ("dense_caption", "caption", "text", "title")
SETTINGS = "embed_settings.json"
# What makes two runs give the same shards.
_SAME = ("text_column", "template", "encoder", "pooling", "instruction", "dim", "max_tokens", "dtype", "embedding_dtype", "shard_rows")  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input", required=True, help="Parquet file or folder with pid and text columns")
    parser.add_argument("--output_path", type=Path, required=True, help="a .parquet file, or a folder of shards")
    parser.add_argument(
        "--text_column", default="", help=f"text column (default: the first of {', '.join(TEXT_COLUMNS)})"
    )
    parser.add_argument("--template", default="", help='text from several columns, as "{title}. {genre}"')
    parser.add_argument(
        "--encoder",
        default=TFIDF_SVD,
        help=f"path or hub name of an HF text encoder, {TFIDF_SVD}, or {NO_TEXT}: the embeddings of --concat alone",
    )
    parser.add_argument(
        "--pooling",
        choices=("auto", "last", "mean", "cls", "max"),
        default="auto",
        help="auto: as the model folder says; without a word last for decoders, mean else",
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
        "--dim",
        type=integer(1, 2**16, also=(-1,)),
        default=-1,
        help="dimensions kept (Matryoshka; -1: all; 64 for tfidf_svd)",
    )
    parser.add_argument("--batch_size", type=COUNT, default=256, help="texts encoded at a time, at most")
    parser.add_argument(
        "--max_batch_tokens", type=COUNT, default=16384, help="padded tokens encoded at a time, at most"
    )
    parser.add_argument("--max_tokens", type=COUNT, default=512, help="longer texts are cut")
    parser.add_argument("--shard_rows", type=COUNT, default=100_000, help="rows of a shard")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on a GPU"
    )
    parser.add_argument(
        "--embedding_dtype", choices=("float32", "float16"), default="float32", help="of the output column"
    )
    parser.add_argument("--overwrite", action="store_true", help="start over where other shards are there")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the SVD")
    parser.add_max_bad_ratio()
    return parser.parse_args(argv)


class Texts:
    """The input's rows as (pid, text), without doubled pids and rows that have no text."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.files = list_parquet(args.input)
        self.rows = sum(count_rows(file) for file in self.files)
        for file in self.files:
            self._template(file)  # raises where a column is missing, before anything is encoded
        self._first = FirstOfPid(args.input)

    def _template(self, file: Path) -> tuple[str, list[str]]:
        """(template, its columns) for a file."""
        names = open_parquet(file, ["pid"]).schema_arrow.names
        column = self._args.text_column or next((c for c in TEXT_COLUMNS if c in names), TEXT_COLUMNS[0])
        template = self._args.template or "{" + column + "}"
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
            template.format(**dict.fromkeys(fields, ""))
        except (ValueError, LookupError, AttributeError) as error:
            raise InputError("--template", f"{template} cannot be filled ({error})", "as {title}. {genre}") from None
        if not fields:
            raise InputError("--template", f"{template} names no column", "as {title}. {genre}")
        open_parquet(file, fields)
        return template, list(dict.fromkeys(fields))

    def note_inputs(self, manifest: Manifest) -> None:
        """Note the input files."""
        for file in self.files:
            manifest.input(file, count_rows(file))

    def shards(self, size: int) -> Iterator[tuple[int, list[tuple[str, list[str], int, pa.RecordBatch]]]]:
        """(shard, its pieces of batches with their template, its columns and their first row), ``size`` rows each."""
        number, held, pieces, row = 0, 0, [], 0
        for file in self.files:
            template, fields = self._template(file)
            kinds = dict.fromkeys(fields, Kind.SHOWN) | {"pid": Kind.INT}
            for whole in iter_batches(file, kinds, strict=False):
                batch = whole
                while batch.num_rows:
                    piece = batch.slice(0, size - held)
                    pieces.append((template, fields, row, piece))
                    held, row = held + piece.num_rows, row + piece.num_rows
                    batch = batch.slice(piece.num_rows)
                    if held == size:
                        yield number, pieces
                        number, held, pieces = number + 1, 0, []
        if pieces:
            yield number, pieces

    def texts(
        self, pieces: list[tuple[str, list[str], int, pa.RecordBatch]], manifest: Manifest
    ) -> tuple[list[int], list[str]]:
        """(pids, texts) of a shard; rows that are dropped are counted."""
        pids, texts = [], []
        for template, fields, row, batch in pieces:
            for place, values in enumerate(batch.to_pylist(), row):
                parts = {field: "" if values[field] is None else str(values[field]) for field in fields}
                if not any(value.strip() for value in parts.values()):
                    manifest.drop("text is empty")
                elif values["pid"] is None or not self._first(values["pid"], place):
                    manifest.drop("pid is null or stands twice")
                else:
                    pids.append(values["pid"])
                    texts.append(self._args.instruction + template.format(**parts))
        return pids, texts


def tfidf_svd(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length: TF-IDF over words and Chinese character pairs, reduced by truncated SVD."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word of Latin letters or digits, or two neighbouring Chinese characters (a lookahead lets them overlap).
    pattern = r"(?u)([^\W_\u4e00-\u9fff]+|[\u4e00-\u9fff](?=[\u4e00-\u9fff]))"
    grams = TfidfVectorizer(token_pattern=pattern, ngram_range=(1, 2), sublinear_tf=True, min_df=min(2, len(texts)))
    try:
        matrix = grams.fit_transform(texts)
    except ValueError as error:
        raise InputError("--encoder", f"{TFIDF_SVD} finds no words ({error})", "texts with words") from None
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:
        raise InputError("--encoder", f"{TFIDF_SVD} needs at least two different texts", "more items")
    vectors = TruncatedSVD(rank, random_state=seed).fit_transform(matrix)
    return unit(np.pad(vectors, ((0, 0), (0, dim - rank))))


class Beside:
    """Embeddings of other files (``FILE`` or ``FILE:WEIGHT``), to put beside the text's."""

    def __init__(self, others: Sequence[str]) -> None:
        self._others = []
        for other in others:
            name, _, weight = other.partition(":")
            try:
                scale = float(weight or 1)
            except ValueError:
                scale = -1.0
            if not 0 < scale < np.inf:
                raise InputError("--concat", f"{other} has the weight {weight}", "FILE or FILE:WEIGHT, a number above 0")  # fmt: skip
            noted = Manifest("concat", {})
            pids, vectors = zip(*iter_embeddings(name, embedding_dim(name), noted), strict=True)
            if noted.dropped.keys() - {ALL_ZERO}:  # which is as if the item were not there
                raise InputError(name, f"has bad rows ({noted.dropped_text()})", "one whole embedding an item")
            rows = {pid: row for row, pid in enumerate(np.concatenate(pids).tolist())}
            self._others.append((rows, scale, unit(np.concatenate(vectors))))

    def join(self, pids: Sequence[int], vectors: np.ndarray) -> np.ndarray:
        """``vectors`` with the others beside them, unit length; an item that a file lacks gets zeros there."""
        if not self._others:
            return vectors
        parts = [vectors]
        for rows, scale, found in self._others:
            places = np.array([rows.get(pid, -1) for pid in pids])
            parts.append(scale * np.where(places[:, None] >= 0, found[places], 0))
        joined = np.concatenate(parts, axis=1)
        unknown = ~joined.any(1)
        if unknown.any() and not unknown.all():  # no source knows the item: the middle of the others
            joined[unknown] = joined[~unknown].mean(0)
        return unit(joined)


def as_table(pids: Sequence[int], vectors: np.ndarray, args: argparse.Namespace, dropped: Any = None) -> pa.Table:
    """The output's rows; ``dropped`` goes into the schema's metadata."""
    values = pa.array(vectors.astype(args.embedding_dtype).ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])
    table = pa.table({"pid": pa.array(pids, pa.int64()), "embedding": lists})
    return table if dropped is None else table.replace_schema_metadata({"dropped": repr(dropped)})


def make_encoder(args: argparse.Namespace) -> TextEncoder:
    """The HF encoder on this process's device."""
    import torch

    from tokenizer.text_encoder import TextEncoder

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device", "cuda is not available on this machine", "cpu or auto")
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    name = ("bfloat16" if device.startswith("cuda") else "float32") if args.dtype == "auto" else args.dtype
    return TextEncoder(
        args.encoder, args.pooling, args.dim, args.max_tokens, args.batch_size, args.max_batch_tokens, device, getattr(torch, name)
    )  # fmt: skip


def begin(args: argparse.Namespace, folder: Path, files: Sequence[Path]) -> None:
    """Make the folder of shards, or go on with it; raises `InputError` where it holds those of other settings or inputs."""
    settings = {name: getattr(args, name) for name in _SAME}
    settings["input"] = files_digest(files)
    parted = [other.partition(":") for other in args.concat]
    settings["concat"] = [[files_digest([name]), weight] for name, _, weight in parted]
    if os.path.isdir(args.encoder):
        settings["encoder"] = model_digest(args.encoder)
    file = folder / SETTINGS
    if file.exists() and args.overwrite:  # these alone are ours; the settings go last, as they say so
        for old in (*folder.glob("part-*-of-*.parquet"), file):
            old.unlink()
    if file.exists() and read_json(file) != settings:
        raise InputError(folder, "holds shards of other settings or another input", "--overwrite starts over")
    if not file.exists():
        if other := [name for name in sorted(os.listdir(folder)) if name != LOCK]:
            raise InputError(folder, f"holds other files ({other[0]})", "give a new folder, or an empty one")
        write_json(file, settings)


def encode_shards(
    args: argparse.Namespace, texts: Texts, names: list[Path], beside: Beside, encoder: TextEncoder | None
) -> None:
    """Write this process's shards that are not there yet."""
    rank, world = processes()
    for number, pieces in texts.shards(args.shard_rows):
        if number % world != rank or names[number].exists():
            continue
        encoder = encoder or make_encoder(args)
        counts = Manifest("embed_items", {})
        pids, wanted = texts.texts(pieces, counts)
        label = f"embed {number + 1}/{len(names)}" if len(names) > 1 else "embed"
        width = encoder.dim
        vectors = encoder.encode(wanted, label) if wanted else np.zeros((0, width), np.float32)
        good = np.isfinite(vectors).all(1)
        counts.drop("encoder gave no number", int((~good).sum()))
        pids = [pid for pid, fine in zip(pids, good.tolist(), strict=True) if fine]
        write_table(names[number], as_table(pids, beside.join(pids, vectors[good]), args, dict(counts.dropped)))


def by_encoder(args: argparse.Namespace, texts: Texts, manifest: Manifest) -> tuple[int, int]:
    """Encode shard by shard; returns (items, dimensions) on the first process, zeros on the others."""
    single = args.output_path.suffix == ".parquet"
    folder = args.output_path.with_name(f".{args.output_path.stem}.shards") if single else args.output_path
    with locked(folder, processes()[0] == 0):
        return _by_encoder(args, texts, manifest, folder, single)


def _by_encoder(
    args: argparse.Namespace, texts: Texts, manifest: Manifest, folder: Path, single: bool
) -> tuple[int, int]:
    count = -(-texts.rows // args.shard_rows)
    names = [folder / shard_name(i, count) for i in range(count)]
    rank = processes()[0]
    # What cannot be had is said before the folder takes the settings of this run.
    beside, encoder = Beside(args.concat), None
    if rank == 0:
        if args.overwrite or not all(name.exists() for name in names):
            encoder = make_encoder(args)
        begin(args, folder, texts.files)
    # Opened by all together, so after `begin`; left by all together, so when every shard is there.
    with process_group("gloo", timeout=datetime.timedelta(days=7)):
        encode_shards(args, texts, names, beside, encoder)
    if rank:
        return 0, 0
    import ast

    for name in names:
        for reason, number in ast.literal_eval(open_parquet(name).schema_arrow.metadata[b"dropped"].decode()).items():
            manifest.drop(reason, number)
    manifest.check_bad_ratio(args.input, sum(manifest.dropped.values()), texts.rows, args.max_bad_ratio)
    items = sum(count_rows(name) for name in names)
    if not items:
        raise InputError(args.input, "holds no text", "at least one item with text")
    schema = open_parquet(names[0]).schema_arrow.remove_metadata()
    if single:
        batches = (
            batch.replace_schema_metadata() for name in names for batch in iter_batches(name, ["pid", "embedding"])
        )
        write_batches(args.output_path, schema, batches)
        remove_folder(folder)
    return items, schema.field("embedding").type.list_size


def by_tfidf(args: argparse.Namespace, texts: Texts, manifest: Manifest) -> tuple[int, int]:
    """Embed all texts at once, or none of them; returns (items, dimensions)."""
    if processes()[1] > 1:
        raise InputError("--encoder", f"{args.encoder} needs all items in one process", "run it without torchrun")
    pieces = [piece for _, some in texts.shards(max(texts.rows, 1)) for piece in some]
    pids, wanted = texts.texts(pieces, manifest)
    manifest.check_bad_ratio(args.input, sum(manifest.dropped.values()), texts.rows, args.max_bad_ratio)
    if not wanted:
        raise InputError(args.input, "holds no text", "at least one item with text")
    if args.encoder == NO_TEXT:
        own = np.zeros((len(wanted), 0), np.float32)
    else:
        own = tfidf_svd(wanted, args.dim if args.dim > 0 else 64, args.seed)
    vectors = Beside(args.concat).join(pids, own)
    output = args.output_path if args.output_path.suffix == ".parquet" else args.output_path / shard_name(0, 1)
    write_table(output, as_table(pids, vectors, args))
    return len(pids), vectors.shape[1]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.encoder == NO_TEXT and not args.concat:
        raise InputError("--encoder", f"{NO_TEXT} leaves nothing to embed", "embeddings to take, by --concat")
    manifest = Manifest("embed_items", args)
    texts = Texts(args)
    texts.note_inputs(manifest)
    items, dim = (by_tfidf if args.encoder in (TFIDF_SVD, NO_TEXT) else by_encoder)(args, texts, manifest)
    if processes()[0]:
        return
    manifest.output(args.output_path, items)
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    print(f"embedded {items:,} items, {dim} dimensions, in {args.output_path}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
