"""Reading item embeddings from Parquet: any float type, fixed-size or plain lists, streamed, bad rows counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from onerec.errors import InputError
from onerec.parquet import iter_batches, list_parquet
from onerec.run import Manifest

BAD_REASONS = ("embedding is null", "embedding is not finite", "embedding is all zero")


def iter_embeddings(
    path: str | Path, dim: int, manifest: Manifest, batch_size: int = 8192
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream (pids int64 [b], vectors float32 [b, dim]) of a file or folder with columns ``pid`` and ``embedding``.

    A longer embedding is cut to its first ``dim`` values (Matryoshka). Rows that are null, not finite or all zero are
    dropped and counted in ``manifest``. Raises `InputError` where a row is shorter than ``dim`` or rows differ.
    """
    for file in list_parquet(path):
        rows = 0
        for batch in iter_batches(file, ["pid", "embedding"], batch_size=batch_size):
            rows += batch.num_rows
            pids, vectors = _arrays(file, batch, dim, manifest)
            yield pids, vectors
        manifest.input(file, rows)
        if rows == 0:
            raise InputError(file, "is an empty table", "give at least one item")


def _arrays(file: Path, batch: pa.RecordBatch, dim: int, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    column = batch.column("embedding")
    if not (
        pa.types.is_list(column.type)
        or pa.types.is_fixed_size_list(column.type)
        or pa.types.is_large_list(column.type)
    ):
        raise InputError(file, f"column embedding is {column.type}", "a list of floats is wanted")
    if not pa.types.is_floating(column.type.value_type):
        raise InputError(
            file, f"column embedding holds {column.type.value_type}", "a list of floats is wanted"
        )
    null = column.is_null().to_numpy(zero_copy_only=False)
    manifest.drop(BAD_REASONS[0], int(null.sum()))
    kept = column.drop_null()
    pids = np.asarray(batch.column("pid").to_numpy(zero_copy_only=False))[~null].astype(np.int64)
    lengths = np.unique(kept.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise InputError(
            file, f"has embeddings of {lengths.min()} to {lengths.max()} dimensions", "all of one dimension"
        )
    if not len(kept):
        return pids, np.zeros((0, dim), np.float32)
    if lengths[0] < dim:
        raise InputError(file, f"has embeddings of {lengths[0]} dimensions", f"at least --dim {dim}")
    values = kept.flatten().to_numpy(zero_copy_only=False)
    vectors = values.reshape(len(kept), -1)[:, :dim].astype(np.float32)
    finite, zero = np.isfinite(vectors).all(1), ~vectors.any(1)
    manifest.drop(BAD_REASONS[1], int((~finite).sum()))
    manifest.drop(BAD_REASONS[2], int(zero.sum()))
    good = finite & ~zero
    return pids[good], vectors[good]


def embedding_dim(path: str | Path) -> int:
    """Dimension of the first embedding of a file or folder."""
    for batch in iter_batches(list_parquet(path)[0], ["embedding"], batch_size=1):
        value = batch.column("embedding")[0].as_py()
        if value:
            return len(value)
    raise InputError(path, "has no embedding in its first rows", "give at least one item")
