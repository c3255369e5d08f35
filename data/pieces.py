"""A mix's sources cut into pieces, each of which can be read by itself, with the rows of it that the mix takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.mix import RecordFile, Source, checked
from data.sampling import StreamSample, batch_rows, chunks
from onerec.parquet import open_parquet
from onerec.records import record_batches
from onerec.run import Manifest


@dataclasses.dataclass(frozen=True)
class Piece:
    """Row groups of a file. ``taken`` bool [their rows]: those that the mix takes; None where it takes all."""

    source: str
    file: RecordFile
    row_groups: list[int]
    taken: np.ndarray | None

    def read(self, manifest: Manifest) -> Iterator[pa.RecordBatch]:
        """The rows that are taken in the record schema, in batches of about 8 MB; bad ones dropped and counted."""
        at = 0
        for batch in record_batches(self.file.path, _batch_rows(self.file), self.row_groups):
            rows = batch.num_rows
            if self.taken is not None:
                batch = batch.filter(pa.array(self.taken[at : at + rows]))
            at += rows
            yield checked(batch, manifest)


def pieces(source: Source, rng: np.random.Generator, size: int, manifest: Manifest) -> Iterator[Piece]:
    """The pieces of a source, of about ``size`` bytes before compression; which rows are taken is drawn here.

    Rows of excluded users are counted by source in the manifest's ``rows_of_excluded_users``.
    """
    sample = StreamSample(source.total, source.wanted, rng)
    rows = sum(file.rows for file in source.files)
    if source.total < rows:
        manifest.extra.setdefault("rows_of_excluded_users", {})[source.name] = rows - source.total
    for file, kept in zip(source.files, source.kept, strict=True):
        manifest.input(file.path, file.rows)
        taken = None if source.wanted == rows else _taken(sample, file, kept)
        at = 0
        for groups, count in _row_groups(file.path, size):
            yield Piece(source.name, file, groups, None if taken is None else taken[at : at + count])
            at += count


def _taken(sample: StreamSample, file: RecordFile, kept: np.ndarray | None) -> np.ndarray:
    """bool [rows of the file]: what ``sample`` takes of those that are ``kept``."""
    taken = np.zeros(file.rows, bool)
    possible = np.arange(file.rows) if kept is None else np.flatnonzero(np.unpackbits(kept, count=file.rows))
    for start, end in chunks(file.rows, _batch_rows(file)):  # the draws are those of a stream of batches
        batch = possible[np.searchsorted(possible, start) : np.searchsorted(possible, end)]
        taken[batch[sample.take(len(batch))]] = True
    return taken


def _batch_rows(file: RecordFile) -> int:
    return batch_rows(file.bytes / max(file.rows, 1))


def _row_groups(path: Path, size: int) -> Iterator[tuple[list[int], int]]:
    """(numbers of row groups that follow each other, their rows), of ``size`` bytes and at most a group more."""
    metadata = open_parquet(path).metadata
    numbers, rows, held = list[int](), 0, 0
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        numbers, rows, held = [*numbers, i], rows + group.num_rows, held + group.total_byte_size
        if held >= size:
            yield numbers, rows
            numbers, rows, held = [], 0, 0
    if numbers:
        yield numbers, rows
