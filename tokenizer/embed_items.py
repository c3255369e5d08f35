"""Item text to embeddings, for a catalogue that comes without: a Hugging Face text encoder, or TF-IDF and SVD.

    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder tfidf_svd --dim 64
    python embed_items.py --input pid2caption.parquet --output_path item_embedding.parquet --encoder <model folder>
    torchrun --nproc_per_node 8 embed_items.py --input captions/ --output_path out --encoder Qwen/Qwen3-Embedding-8B

The text of an item is a column, or several put into --template ("{title}. {genre}"). The input is read as a stream, in
shards of --shard_rows rows, and the same command goes on with the shards that are missing. Output: one file, or a
folder of shards where --output_path has no .parquet ending. Qwen3-Embedding wants no instruction for items
(documents); for queries it is "Instruct: <task>\\nQuery:". TF-IDF and SVD need all texts at once.
"""

from __future__ import annotations

import argparse
import ast
import datetime
import functools
import os
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    embedding_table,
    iter_batches,
    list_parquet,
    open_parquet,
    write_batches,
    write_table,
)
from onerec.run import Manifest, processes, read_json, write_json
from onerec.sparse import svd_vectors, unit
from tokenizer.embeddings import ALL_ZERO, embedding_dim, first_of_pids, iter_embeddings
from tokenizer.quantizer import chosen_device

if TYPE_CHECKING:
    import torch

    from tokenizer.text_encoder import TextEncoder

# Of a batch of the input: template, its columns, number of the first row, the rows.
Piece = tuple[str, list[str], int, pa.RecordBatch]
TFIDF_SVD = "tfidf_svd"
NO_TEXT = "none"  # nothing of the text: what --concat names, alone
TEXT_COLUMNS = ("dense_caption", "caption", "text", "title")
SETTINGS = "embed_settings.json"
# What makes two runs give the same shards.
_SAME = "text_column template encoder pooling instruction dim max_tokens shard_rows"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--input", required=True, help="Parquet file or folder with pid and text columns")
    add("--output_path", type=Path, required=True, help="a .parquet file, or a folder of shards")
    add("--text_column", default="", help=f"text column (default: the first of {', '.join(TEXT_COLUMNS)})")
    add("--template", default="", help='text from several columns, as "{title}. {genre}"')
    encoders = f"path or hub name of an HF text encoder, {TFIDF_SVD}, or {NO_TEXT}: the embeddings of --concat alone"
    add("--encoder", default=TFIDF_SVD, help=encoders)
    pooling = "auto: as the model folder says; without a word last for decoders, mean else"
    add("--pooling", choices=("auto", "last", "mean", "cls", "max"), default="auto", help=pooling)
    beside = "other embeddings of the same items to put beside the text's, each scaled to length WEIGHT (1)"
    add("--concat", nargs="*", default=[], metavar="FILE[:WEIGHT]", help=beside)
    add("--instruction", default="", help="prefix of every text")
    kept = "dimensions kept (Matryoshka; -1: all; 64 for tfidf_svd)"
    add("--dim", type=integer(1, 2**16, also=(-1,)), default=-1, help=kept)
    add("--max_batch_tokens", type=COUNT, default=16384, help="padded tokens encoded at a time, at most")
    add("--max_tokens", type=COUNT, default=512, help="longer texts are cut")
    add("--shard_rows", type=COUNT, default=100_000, help="rows of a shard")
    add("--device", default="auto", help="cpu, cuda (bfloat16) or auto")
    add("--overwrite", action="store_true", help="start over where other shards are there")
    add("--seed", type=SEED, default=0, help="seed of the SVD")
    parser.add_max_bad_ratio()
    return parser.parse_args(argv)


class Texts:
    """The input's rows as (pid, text), without doubled pids and rows that have no text."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self.files = list_parquet(args.input)
        self.rows = sum(count_rows(file) for file in self.files)
        # Raises where a column is missing, before anything is encoded.
        self._templates = [self._template(file) for file in self.files]
        self._first = first_of_pids(args.input)

    def _template(self, file: Path) -> tuple[str, list[str]]:
        """(template, its columns) for a file."""
        names = open_parquet(file, ["pid"]).schema_arrow.names
        column = self._args.text_column or next((c for c in TEXT_COLUMNS if c in names), TEXT_COLUMNS[0])
        template, right = self._args.template or "{" + column + "}", "as {title}. {genre}"
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
            template.format(**dict.fromkeys(fields, ""))
        except (ValueError, LookupError, AttributeError) as error:
            raise InputError("--template", f"{template} cannot be filled ({error})", right) from None
        if not fields:
            raise InputError("--template", f"{template} names no column", right)
        open_parquet(file, fields)
        return template, list(dict.fromkeys(fields))

    def shards(
        self, size: int, wanted: Callable[[int], bool] = lambda shard: True
    ) -> Iterator[tuple[int, list[Piece]]]:
        """(shard, its pieces), ``size`` rows each, of the ``wanted`` ones; the row groups of others are not read."""
        pieces, row = [], 0
        for file, (template, fields) in zip(self.files, self._templates, strict=True):
            kinds, metadata = dict.fromkeys(fields, Kind.SHOWN) | {"pid": Kind.INT}, open_parquet(file).metadata
            for group in range(metadata.num_row_groups):
                end = row + metadata.row_group(group).num_rows
                if not any(map(wanted, range(row // size, -(-end // size)))):
                    row = end
                    continue
                for whole in iter_batches(file, kinds, strict=False, row_groups=[group]):
                    batch = whole
                    while batch.num_rows:
                        piece = batch.slice(0, size - row % size)
                        if wanted(row // size):
                            pieces.append((template, fields, row, piece))
                        row, batch = row + piece.num_rows, batch.slice(piece.num_rows)
                        if pieces and row % size == 0:
                            yield row // size - 1, pieces
                            pieces = []
        if pieces:
            yield row // size, pieces

    def _left_out(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """bool [n]: rows of a piece that have no text, and others whose pid is null or stood before."""
        _, fields, row, batch = piece
        blank = np.ones(batch.num_rows, bool)
        for field in fields:
            text = pc.utf8_trim_whitespace(batch.column(field)).fill_null("")
            blank &= pc.equal(text, "").to_numpy(zero_copy_only=False)
        return blank, ~blank & ~self._first[row : row + batch.num_rows]

    def texts(self, pieces: list[Piece], manifest: Manifest) -> tuple[list[int], list[str]]:
        """(pids, texts) of a shard; rows that are dropped are counted."""
        pids, texts = [], []
        for piece in pieces:
            template, fields, _, batch = piece
            blank, double = self._left_out(piece)
            _count(manifest, blank, double)
            for values in batch.filter(pa.array(~blank & ~double)).to_pylist():
                parts = {field: "" if values[field] is None else values[field] for field in fields}
                pids.append(values["pid"])
                texts.append(self._args.instruction + template.format(**parts))
        return pids, texts

    def check_rows(self) -> None:
        """As `check`, of the rows alone: said before anything is encoded."""
        noted = Manifest("embed_items", {})
        for _, pieces in self.shards(self._args.shard_rows):
            for piece in pieces:
                _count(noted, *self._left_out(piece))
        self.check(noted, self.rows - sum(noted.dropped.values()))

    def check(self, manifest: Manifest, items: int) -> None:
        """Raise `InputError` where too many rows were dropped, or nothing is left."""
        args = self._args
        manifest.check_bad_ratio(args.input, sum(manifest.dropped.values()), self.rows, args.max_bad_ratio)
        if not items:
            raise InputError(args.input, "holds no text", "at least one item with text")


def _count(manifest: Manifest, blank: np.ndarray, double: np.ndarray) -> None:
    manifest.drop("text is empty", int(blank.sum()))
    manifest.drop("pid is null or stands twice", int(double.sum()))


def tfidf_svd(texts: Sequence[str], dim: int, seed: int) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length: truncated SVD of TF-IDF over words and pairs of Chinese characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word of Latin letters or digits, or two neighbouring Chinese characters (a lookahead lets them overlap).
    pattern = r"(?u)([^\W_\u4e00-\u9fff]+|[\u4e00-\u9fff](?=[\u4e00-\u9fff]))"
    grams = TfidfVectorizer(token_pattern=pattern, ngram_range=(1, 2), sublinear_tf=True, min_df=min(2, len(texts)))
    try:
        matrix = grams.fit_transform(texts)
    except ValueError as error:
        raise InputError("--encoder", f"{TFIDF_SVD} finds no words ({error})", "texts with words") from None
    if min(matrix.shape) < 2:
        raise InputError("--encoder", f"{TFIDF_SVD} needs at least two different texts", "more items")
    return svd_vectors(matrix, dim, seed)


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
                right = "FILE or FILE:WEIGHT, a number above 0"
                raise InputError("--concat", f"{other} has the weight {weight}", right)
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
            places = np.array([rows.get(pid, -1) for pid in pids], np.int64)
            parts.append(scale * np.where(places[:, None] >= 0, found[places], 0))
        joined = np.concatenate(parts, axis=1)
        unknown = ~joined.any(1)
        if unknown.any() and not unknown.all():  # no source knows the item: the middle of the others
            joined[unknown] = joined[~unknown].mean(0)
        return unit(joined)


def placed(args: argparse.Namespace) -> tuple[str, torch.dtype]:
    """(device, precision) of the encoder."""
    import torch

    device = chosen_device(args.device)
    return device, torch.bfloat16 if device.startswith("cuda") else torch.float32


def make_encoder(args: argparse.Namespace) -> TextEncoder:
    from tokenizer.text_encoder import TextEncoder

    return TextEncoder(args.encoder, args.pooling, args.dim, args.max_tokens, args.max_batch_tokens, *placed(args))


def begin(args: argparse.Namespace, folder: Path, files: Sequence[Path], hidden: bool) -> None:
    """Begin the folder of shards, or go on with it.

    Where they are of other settings or inputs, a ``hidden`` folder, which only a run that did not end leaves, is begun
    anew; another one is what the user asked for, and raises `InputError`.
    """
    settings = {name: getattr(args, name) for name in _SAME.split()}
    settings["input"], settings["dtype"] = files_digest(files), str(placed(args)[1])
    parted = [other.partition(":") for other in args.concat]
    settings["concat"] = [[files_digest([name]), weight] for name, _, weight in parted]
    if os.path.isdir(args.encoder):
        settings["encoder"] = model_digest(args.encoder)
    file = folder / SETTINGS
    others = file.exists() and read_json(file) != settings
    if others and hidden:
        print(f"{folder}: shards of a run of other settings or input that did not end are removed")
    if file.exists() and (args.overwrite or (others and hidden)):
        # These alone are ours; the settings go last, as they say so.
        for old in (*folder.glob("part-*-of-*.parquet"), file):
            old.unlink()
    elif others:
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

    def ours(number: int) -> bool:
        return number % world == rank and not names[number].exists()

    for number, pieces in texts.shards(args.shard_rows, functools.cache(ours)):
        encoder = encoder or make_encoder(args)
        counts = Manifest("embed_items", {})
        pids, wanted = texts.texts(pieces, counts)
        label = f"embed {number + 1}/{len(names)}" if len(names) > 1 else "embed"
        vectors = encoder.encode(wanted, label) if wanted else np.zeros((0, encoder.dim), np.float32)
        good = np.isfinite(vectors).all(1)
        counts.drop("encoder gave no number", int((~good).sum()))
        pids = [pid for pid, fine in zip(pids, good.tolist(), strict=True) if fine]
        joined = beside.join(pids, vectors[good]).astype(np.float32)
        # What was dropped goes with the shard: the process that ends the run reads it there.
        dropped = {"dropped": repr(dict(counts.dropped))}
        write_table(names[number], embedding_table(pids, joined).replace_schema_metadata(dropped))


def by_encoder(args: argparse.Namespace, texts: Texts, manifest: Manifest) -> tuple[int, int]:
    """Encode shard by shard; returns (items, dimensions) on the first process, zeros on the others."""
    single, rank = args.output_path.suffix == ".parquet", processes()[0]
    folder = args.output_path.with_name(f".{args.output_path.stem}.shards") if single else args.output_path
    with locked(folder, rank == 0):
        count = -(-texts.rows // args.shard_rows)
        names = [folder / shard_name(i, count) for i in range(count)]
        # What cannot be had is said before the folder takes the settings of this run.
        beside, encoder = Beside(args.concat), None
        if rank == 0:
            texts.check_rows()
            if args.overwrite or not all(name.exists() for name in names):
                encoder = make_encoder(args)
            begin(args, folder, texts.files, single)
        # Opened by all together, so after `begin`; left by all together, so when every shard is there.
        with process_group("gloo", timeout=datetime.timedelta(days=7)):
            encode_shards(args, texts, names, beside, encoder)
        return (0, 0) if rank else join_shards(args, texts, manifest, names, folder if single else None)


def join_shards(
    args: argparse.Namespace, texts: Texts, manifest: Manifest, names: list[Path], folder: Path | None
) -> tuple[int, int]:
    """Count what the shards hold and lack; one file of them, and no ``folder``, where one is wanted."""
    for name in names:
        for reason, number in ast.literal_eval(open_parquet(name).schema_arrow.metadata[b"dropped"].decode()).items():
            manifest.drop(reason, number)
    items = sum(count_rows(name) for name in names)
    texts.check(manifest, items)
    schema = open_parquet(names[0]).schema_arrow.remove_metadata()
    if folder:
        batches = (batch for name in names for batch in iter_batches(name, ["pid", "embedding"]))
        write_batches(args.output_path, schema, (batch.replace_schema_metadata() for batch in batches))
        remove_folder(folder)
    return items, schema.field("embedding").type.list_size


def by_tfidf(args: argparse.Namespace, texts: Texts, manifest: Manifest) -> tuple[int, int]:
    """Embed all texts at once, or none of them; returns (items, dimensions)."""
    if processes()[1] > 1:
        raise InputError("--encoder", f"{args.encoder} needs all items in one process", "run it without torchrun")
    pieces = [piece for _, some in texts.shards(max(texts.rows, 1)) for piece in some]
    pids, wanted = texts.texts(pieces, manifest)
    texts.check(manifest, len(pids))
    if args.encoder == NO_TEXT:
        own = np.zeros((len(wanted), 0), np.float32)
    else:
        own = tfidf_svd(wanted, args.dim if args.dim > 0 else 64, args.seed)
    vectors = Beside(args.concat).join(pids, own)
    output = args.output_path if args.output_path.suffix == ".parquet" else args.output_path / shard_name(0, 1)
    write_table(output, embedding_table(pids, vectors.astype(np.float32)))
    return len(pids), vectors.shape[1]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.encoder == NO_TEXT and not args.concat:
        raise InputError("--encoder", f"{NO_TEXT} leaves nothing to embed", "embeddings to take, by --concat")
    manifest = Manifest("embed_items", args)
    texts = Texts(args)
    for file in texts.files:
        manifest.input(file, count_rows(file))
    items, dim = (by_tfidf if args.encoder in (TFIDF_SVD, NO_TEXT) else by_encoder)(args, texts, manifest)
    if processes()[0]:
        return
    manifest.output(args.output_path, items)
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    print(f"embedded {items:,} items, {dim} dimensions, in {args.output_path}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
