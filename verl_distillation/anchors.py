"""Recommendation prompts among the general ones: the student as it came is their teacher, so that recommendation stays what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from onerec.errors import InputError
from onerec.parquet import write_table
from verl_distillation.settings import ANCHOR, GENERAL

_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def mix(general: Path, anchors: Path, share: float, seed: int, output: Path) -> tuple[int, int]:
    """Write the general prompts and so many anchors that they are ``share`` of all, a sample by ``seed``; returns both counts.

    Both files have a column ``prompt`` (list of {role, content}); the output adds ``data_source``. Where there are fewer
    anchors than wanted, all are taken.
    """
    turns, extra = (
        pq.read_table(path, columns=["prompt"]).column(0).cast(_TURNS) for path in (general, anchors)
    )
    wanted = min(len(extra), round(len(turns) * share / (1 - share)))
    if not wanted:
        raise InputError("--anchor_share", f"{share:g} of {len(turns)} prompts is none", "a larger share")
    chosen = np.sort(np.random.default_rng(seed).choice(len(extra), wanted, replace=False))
    prompts = pa.chunked_array([*turns.chunks, *extra.take(pa.array(chosen)).chunks], _TURNS)
    sources = pa.array([GENERAL] * len(turns) + [ANCHOR] * wanted)
    write_table(output, pa.table({"prompt": prompts, "data_source": sources}))
    return len(turns), wanted
