"""Anchors: prompts of the student's own tasks, on which the student as it came is the teacher, among general ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onerec.errors import InputError
from onerec.parquet import write_table
from verl_distillation.settings import ANCHOR, GENERAL

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def mix(general: Path, anchors: Sequence[Path], share: float, seed: int, output: Path) -> tuple[int, int]:
    """Write the general prompts and, by ``seed``, anchors that are ``share`` of all; returns both counts.

    All files have a column ``prompt`` (list of {role, content}); the output adds ``data_source``. Each file of anchors
    gives the same number; where one has fewer, all of its rows are taken.
    """
    turns = _prompts(general)
    wanted = round(len(turns) * share / (1 - share))
    if wanted < len(anchors):
        what = f"{share:g} of {len(turns)} prompts is none for one of the anchor files"
        raise InputError("--anchor_share", what, "a larger share")
    generator = np.random.default_rng(seed)
    chunks, taken = turns.chunks, 0
    for place, path in enumerate(anchors):
        extra = _prompts(path)
        # Parts that differ by one at most and add up to what is wanted.
        part = min(len(extra), wanted * (place + 1) // len(anchors) - wanted * place // len(anchors))
        chosen = np.sort(generator.choice(len(extra), part, replace=False))
        chunks, taken = [*chunks, *extra.take(pa.array(chosen)).chunks], taken + part
    sources = pa.array([GENERAL] * len(turns) + [ANCHOR] * taken)
    write_table(output, pa.table({"prompt": pa.chunked_array(chunks, _TURNS), "data_source": sources}))
    return len(turns), taken


def _prompts(path: Path) -> pa.ChunkedArray:
    return pq.read_table(path, columns=["prompt"]).column(0).cast(_TURNS)
