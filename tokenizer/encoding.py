"""Encoding embeddings with a trained quantiser, batch by batch, or file by file by the tasks of a Ray cluster."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from onerec.flags import RAY
from onerec.parquet import count_rows, list_parquet
from onerec.run import Manifest
from onerec.workers import map_in_order
from tokenizer.embeddings import iter_embeddings, list_bad_rows
from tokenizer.quantizer import Quantizer, load_quantizer


@dataclasses.dataclass(frozen=True)
class EncodeFile:
    """A task: the rows of one file; ``first``: its part of `first_of_pids`."""

    path: Path
    first: np.ndarray


# Of the process of a task: the quantiser, the layers that are used, --beam and --batch_size.
_state: tuple[Quantizer, int, int, int] | None = None


def begin(model_path: Path, n_layers: int, beam: int, batch_size: int) -> None:
    """Read the quantiser in the process of a task."""
    global _state
    _state = load_quantizer(model_path), n_layers, beam, batch_size


def encode_file(job: EncodeFile) -> tuple[list[tuple[np.ndarray, np.ndarray]], Manifest]:
    """((pids, codes) of the file's batches, what was left out)."""
    model, n_layers, beam, batch_size = _state
    noted = Manifest("infer_res_kmeans")
    noted.extra["encode_seconds"] = 0.0
    batches = iter_embeddings(job.path, model.dim, noted, batch_size, job.first)
    return list(encoded(batches, model, n_layers, beam, noted)), noted


def encoded(
    batches: Iterable[tuple[np.ndarray, np.ndarray]], model: Quantizer, n_layers: int, beam: int, manifest: Manifest
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(pids, codes) of (pids, vectors); the manifest counts the seconds."""
    for pids, vectors in batches:
        if len(pids):
            began = time.perf_counter()
            codes = model.encode(vectors, n_layers, beam)
            manifest.extra["encode_seconds"] += time.perf_counter() - began
            yield pids, codes


def encode_on_ray(
    emb_path: str, model_path: Path, settings: tuple[int, int, int], first: np.ndarray, manifest: Manifest
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`encoded` of all files, a task a file; ``settings``: layers that are used, beam, rows of a batch."""
    files, at, jobs = list_parquet(emb_path), 0, []
    for file in files:
        rows = count_rows(file)
        if rows:
            jobs.append(EncodeFile(file, first[at : at + rows]))
        else:
            manifest.input(file, 0)
        at += rows
    for batches, noted in map_in_order(encode_file, jobs, None, begin, (model_path, *settings), RAY):
        manifest.inputs |= noted.inputs
        manifest.dropped += noted.dropped
        manifest.extra["encode_seconds"] += noted.extra["encode_seconds"]
        if bad := noted.extra.get("bad_rows"):
            list_bad_rows(manifest, bad)
        yield from batches
