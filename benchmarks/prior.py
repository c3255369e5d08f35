"""An item prior: other scores of the next item, which rank together with the model's, log p_LM + w · log prior.

Its file is Parquet with lists ``pids`` and ``scores`` (0 or more), of one of two forms:

    pid          what follows each item, as data/transitions.py writes it; a history is scored by its last items
                 (`onerec.transitions`)
    uuid, uid    what a test row's next item, or a user's, may be, from whatever source

The prior of a SID is Σ score / scale + `FLOOR`, over its items. The scale is the mean total of the file's rows: counts,
weights and probabilities then weigh alike, and where little is known the prior stays near its floor.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import BenchTask, Example
from onerec.catalog import ItemIndex
from onerec.content import files_digest
from onerec.errors import InputError
from onerec.items.item import Prior
from onerec.parquet import Kind, column_types, count_rows, list_parts, plain, read_table
from onerec.tasks import PRODUCT, RANK
from onerec.transitions import Transitions

FLOOR = 1e-3
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)  # what is tried on validation users
_KEYS = {"pid": Kind.INT, "uuid": Kind.UUID, "uid": Kind.SHOWN}


@dataclasses.dataclass(frozen=True)
class PriorFile:
    """The scores of a file: row i holds ``pids[offsets[i]:offsets[i + 1]]`` (int64) and their ``scores`` (float64).

    ``key`` is its form (pid, uuid or uid), ``keys`` maps a key to its row, ``digest`` tells its content.
    """

    path: Path
    key: str
    digest: str
    keys: dict[Any, int]
    offsets: np.ndarray
    pids: np.ndarray
    scores: np.ndarray
    follows: Transitions | None

    @classmethod
    def read(cls, path: Path) -> PriorFile:
        """Read a file; raises `InputError` where it has not one of the two forms or a score is below 0."""
        names = column_types(path)
        found = [key for key in _KEYS if key in names]
        if len(found) != 1:
            what = f"has {' and '.join(found)}" if found else "has no column pid, uuid or uid"
            raise InputError(path, what, f"one of pid, uuid and uid; it has {', '.join(names)}")
        key = found[0]
        table = read_table(path, {key: _KEYS[key], "pids": Kind.INTS, "scores": Kind.FLOATS})
        named = table[key].to_pylist()
        pids, offsets, _ = list_parts(plain(table["pids"]))
        scores, others, _ = list_parts(plain(table["scores"]))
        if (wrong := np.flatnonzero(np.diff(offsets) != np.diff(others))).size:
            row = int(wrong[0])
            what = f"row {row} has {np.diff(offsets)[row]} pids and {np.diff(others)[row]} scores"
            raise InputError(path, what, "a score a pid")
        if None in named or pids.null_count:
            raise InputError(path, f"has a null among its {'pids' if pids.null_count else f'{key}s'}", "no nulls")
        if len(keys := {name: row for row, name in enumerate(named)}) < len(named):
            raise InputError(path, f"names a {key} twice", f"one row a {key}")
        values = scores.to_numpy(zero_copy_only=False).astype(np.float64)
        if (wrong := np.flatnonzero(~(np.isfinite(values) & (values >= 0)))).size:
            row = int(np.searchsorted(offsets, wrong[0], side="right")) - 1
            right = "numbers from 0: probabilities, weights or counts, no logarithms"
            raise InputError(path, f"row {row} has the score {values[wrong[0]]}", right)
        if not values.any():
            raise InputError(path, "has no score above 0", "what the next item may be")
        items = pids.to_numpy(zero_copy_only=False).astype(np.int64)
        follows = _follows(np.array(named, np.int64), offsets, items, values) if key == "pid" else None
        return cls(path, key, files_digest([path]), keys, offsets, items, values, follows)

    @classmethod
    def of_transitions(cls, follows: Transitions) -> PriorFile:
        """The scores of transitions that no file holds."""
        matrix = follows.matrix
        pids, scores = follows.pids[matrix.indices], matrix.data.astype(np.float64)
        return cls(Path("transitions"), "pid", "", {}, matrix.indptr.astype(np.int64), pids, scores, follows)

    @property
    def scale(self) -> float:
        """The mean total of the rows that have one."""
        totals = np.diff(np.concatenate([[0.0], np.cumsum(self.scores)])[self.offsets])
        return float(totals[totals > 0].mean())

    def of(self, example: Example, history: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(pids, scores) that the file has for a test row; empty where it does not know it."""
        if self.follows is not None:
            return self.follows.score(history)
        row = self.keys.get(example.uuid if self.key == "uuid" else str(example.uid), -1)
        part = slice(self.offsets[row], self.offsets[row + 1]) if row >= 0 else slice(0)
        return self.pids[part], self.scores[part]


def _follows(keys: np.ndarray, offsets: np.ndarray, pids: np.ndarray, scores: np.ndarray) -> Transitions:
    from scipy import sparse

    known = np.unique(np.concatenate([keys, pids]))
    rows = np.repeat(np.searchsorted(known, keys), np.diff(offsets))
    shape = (len(known), len(known))
    matrix = sparse.coo_matrix((scores.astype(np.float32), (rows, np.searchsorted(known, pids))), shape=shape)
    return Transitions(known, matrix.tocsr())


class TaskPrior:
    """A prior's file over the catalogue of a task. ``unknown`` counts its items that the catalogue lacks."""

    def __init__(self, file: PriorFile, index: ItemIndex) -> None:
        self.file, self.index, self.scale = file, index, file.scale
        items = np.unique(file.pids)
        self.unknown = int((index.rows_naming(items) < 0).sum())
        if self.unknown == len(items):
            raise InputError(file.path, "names no item of the catalogue", "scores of the task's own items")

    def __call__(self, example: Example, history: Sequence[int], skip: Collection[int] = ()) -> Prior:
        """The prior of a test row's next item; the items of ``skip`` add nothing to their SIDs."""
        pids, scores = self.file.of(example, history)
        rows = self.index.rows_naming(pids)
        good = (rows >= 0) & (scores > 0)
        if skip:
            good &= ~np.isin(pids, list(skip))
        found, where = np.unique(rows[good], return_inverse=True)
        total = np.bincount(where, scores[good] / self.scale, len(found))
        return Prior(found, np.log(total + FLOOR).astype(np.float32), float(np.log(FLOOR)))


def prior_path(args: argparse.Namespace, task: BenchTask) -> Path | None:
    """The prior's file of evaluate.py's flags for a task; None where it has none, or is no ranking task."""
    if task.kind != RANK:
        return None
    return args.product_prior if task.catalogue == PRODUCT else args.prior


def check_prior(args: argparse.Namespace, tasks: Sequence[BenchTask]) -> None:
    """Raise `InputError` where a prior cannot be used with evaluate.py's other flags, or its weight not be chosen."""
    with_prior = [task for task in tasks if prior_path(args, task)]
    if not with_prior:
        if args.prior or args.product_prior:
            raise InputError("--prior, --product_prior", "are for ranking tasks of their catalogue", "such a task")
        return
    if args.unconstrained:
        raise InputError("--unconstrained", "searches SIDs that no prior knows", "leave out one of the two")
    if args.prior_weight is not None:
        return
    folder, right = args.validation_dir, "--prior_weight, or data with validation targets (run.py --benchmark_split 2)"
    if folder is None or not args.validation_users:
        raise InputError("--prior_weight", "is missing, and there is no --validation_dir to choose it on", right)
    for task in with_prior:
        path = folder / task.test_file
        if not path.exists() or not count_rows(path):
            raise InputError(path, "has no validation users, by whom the prior's weight would be chosen", right)
        if column_types(prior_path(args, task)).get("uid") is not None:
            what = "has scores by uid, the same ones for a user's validation and test row"
            raise InputError(prior_path(args, task), what, "give --prior_weight, or scores by uuid of both")
