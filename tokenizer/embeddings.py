"""Reading item embeddings from Parquet: any floats, any lists, streamed, bad rows counted and listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from onerec.errors import InputError
from onerec.parquet import Kind, count_rows, integers, iter_batches, list_parquet, list_parts
from onerec.run import Manifest

ALL_ZERO, TWICE = "embedding is all zero", "pid stands twice"
# Why a row is left out: the first reason that applies, by its number; 0 for a good row.
_REASONS = (
    "",
    "pid is null",
    "embedding is null",
    "embedding has another dimension",
    "embedding is not finite or too large",
    ALL_ZERO,
)
_LARGEST = 1e30  # squared length: float32 has room for the sum of a hundred million of them
_LISTED = 1000  # bad rows that the manifest names; all are counted


def iter_embeddings(
    path: str | Path, dim: int, manifest: Manifest, batch_size: int = 8192, first: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Stream (pids int64 [b], vectors float32 [b, dim]) of a file or folder with columns ``pid`` and ``embedding``.

    A longer embedding is cut to its first ``dim`` values (Matryoshka). A row without pid, or whose embedding is null,
    of another dimension than the file's first, not finite or all zero, is dropped, counted in ``manifest`` and listed
    in its ``bad_rows``; with ``first`` (`first_of_pids`) also a row whose pid stood before. Raises `InputError` where
    a file's embeddings are shorter than ``dim`` or no lists of floats, and where there is no row at all.
    """
    before = 0  # rows of the files before this one
    for file in list_parquet(path):
        rows, width = 0, None
        kinds = {"pid": Kind.INT, "embedding": Kind.FLOATS}
        for batch in iter_batches(file, kinds, batch_size=batch_size):
            pids, vectors, places, width = _arrays(file, rows, batch, dim, width, manifest)
            if first is not None:
                kept = first[places + before]
                manifest.drop(TWICE, int((~kept).sum()))
                pids, vectors = pids[kept], vectors[kept]
            rows += batch.num_rows
            yield pids, vectors
        before += rows
        manifest.input(file, rows)
    if before == 0:
        raise InputError(path, "is an empty table", "give at least one item")


def first_of_pids(path: str | Path) -> np.ndarray:
    """bool [rows of a file or folder]: False where a row before has the same pid. Reads the pids alone."""
    pids, known = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for file in list_parquet(path):
        for batch in iter_batches(file, {"pid": Kind.INT}, batch_size=1 << 20, strict=False):
            found, valid, _ = integers(batch.column("pid"))
            pids.append(found)
            known.append(valid)
    first = np.concatenate(known)
    first[first] = ~pd.Series(np.concatenate(pids)[first]).duplicated().to_numpy()
    return first


def sample_vectors(
    paths: Sequence[str | Path],
    dim: int,
    limit: int,
    seed: int,
    manifest: Manifest,
    max_bad_ratio: float,
    share: tuple[int, int] = (0, 1),
) -> tuple[np.ndarray, int, int]:
    """(a uniform sample of at most ``limit`` rows, float32 [n, dim]; its rows of all processes; rows in all).

    Of the rest one batch is in memory. ``share`` (rank, processes): only every ``processes``-th row of the sample, from
    the ``rank``-th. Raises `InputError` where more than ``max_bad_ratio`` of the rows are bad.
    """
    total = sum(count_rows(file) for path in paths for file in list_parquet(path))
    if total > limit:
        chosen = np.sort(np.random.default_rng(seed).choice(total, limit, replace=False))
    else:
        chosen = np.arange(total)
    whole, chosen = chosen, chosen[share[0] :: share[1]]
    sample = np.empty((len(chosen), dim), np.float32)
    taken = position = 0
    for path in paths:
        for _, vectors in iter_embeddings(path, dim, manifest):
            # Bad rows are gone by now, so the chosen places count good rows; the sample stays uniform.
            last = int(np.searchsorted(chosen, position + len(vectors)))
            sample[taken:last] = vectors[chosen[taken:last] - position]
            taken, position = last, position + len(vectors)
    manifest.check_bad_ratio(paths[0], sum(manifest.dropped.values()), total, max_bad_ratio)
    return sample[:taken], int(np.searchsorted(whole, position)), total


def embedding_dim(path: str | Path) -> int:
    """Dimension of the first embedding of a file or folder."""
    for file in list_parquet(path):
        for batch in iter_batches(file, {"embedding": Kind.FLOATS}, batch_size=1):
            if value := batch.column("embedding")[0].as_py():
                return len(value)
    raise InputError(path, "has no embedding", "give at least one item")


def list_bad_rows(manifest: Manifest, rows: list[dict[str, Any]]) -> None:
    """Name rows in the manifest's ``bad_rows``, as long as there are not too many."""
    listed = manifest.extra.setdefault("bad_rows", [])
    listed += rows[: _LISTED - len(listed)]


def _arrays(
    file: Path, first_row: int, batch: pa.RecordBatch, dim: int, width: int | None, manifest: Manifest
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None]:
    """(pids, vectors, their rows in the file, width of its embeddings) of a batch that begins at ``first_row``.

    ``width`` is None until a row had an embedding.
    """
    column = batch.column("embedding")
    pids, has_pid, _ = integers(batch.column("pid"))
    _, offsets, null = list_parts(column)
    lengths = np.diff(offsets)
    if width is None and not null.all():
        width = int(lengths[~null][0])
        if width < dim:
            raise InputError(file, f"has embeddings of {width} dimensions", f"at least --dim {dim}")
    wrong = np.select([~has_pid, null, lengths != (width or 0)], [1, 2, 3])
    usable = np.flatnonzero(wrong == 0)
    if len(usable) < len(column):
        column = column.take(pa.array(usable))
    values = list_parts(column)[0].to_numpy(zero_copy_only=False)
    vectors = values.reshape(len(usable), -1)[:, :dim] if len(usable) else np.zeros((0, dim))
    vectors = vectors.astype(np.float32)
    with np.errstate(all="ignore"):
        finite, zero = np.einsum("ij,ij->i", vectors, vectors) < _LARGEST, ~vectors.any(1)
    wrong[usable] = np.select([zero, ~finite], [5, 4])
    if wrong.any():
        listed = []
        for row in np.flatnonzero(wrong).tolist():
            reason = _REASONS[wrong[row]]
            manifest.drop(reason)
            if len(listed) < _LISTED:
                pid = int(pids[row]) if has_pid[row] else None
                listed.append({"file": str(file), "row": first_row + row, "pid": pid, "reason": reason})
        list_bad_rows(manifest, listed)
        good = finite & ~zero
        vectors, usable = vectors[good], usable[good]
    return pids[usable], vectors, first_row + usable, width
