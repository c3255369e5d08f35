"""The item index: which SIDs exist, which items each names, and the trie that constrained decoding walks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from onerec.errors import InputError
from onerec.parquet import Kind, column_types, integers, list_parts, read_table
from onerec.sid import SidSpec


def read_pid2sid(
    path: str | Path, spec: SidSpec, pid: str = "pid", column: str | None = None, dropped: Counter[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read ``pid2sid.parquet``: (pids int64 [n], codes int32 [n, n_layers]).

    ``column`` is ``codes``, or ``sid`` as in the published release, where it is not named. Raises `InputError` where a
    row has another depth than ``spec`` or a code outside its codebook, where a pid stands twice, or is null and there
    is no ``dropped`` to count it.
    """
    names = column_types(path)
    column = column or ("codes" if "codes" in names else "sid")
    table = read_table(path, {pid: Kind.INT, column: Kind.INTS})
    lists = table[column].combine_chunks()
    items, offsets, _ = list_parts(lists)
    lengths = np.diff(offsets)
    if items.null_count:
        raise InputError(path, "has a code that is null", f"every SID has {spec.n_layers} codes")
    if (wrong := lengths != spec.n_layers).any():
        bad = int(np.flatnonzero(wrong)[0])
        raise InputError(path, f"row {bad} has {lengths[bad]} codes", f"every SID has {spec.n_layers}")
    pids, has_pid, _ = integers(table[pid])
    codes = items.to_numpy(zero_copy_only=False).reshape(-1, spec.n_layers)
    if not has_pid.all():
        if dropped is None:
            raise InputError(path, f"row {int(np.flatnonzero(~has_pid)[0])} has no pid", "an item a row")
        dropped["SIDs: pid is null"] += int((~has_pid).sum())
        pids, codes = pids[has_pid], codes[has_pid]
    outside = (codes < 0) | (codes >= np.array(spec.codebook_sizes))
    if outside.any():
        row, layer = (int(x) for x in np.argwhere(outside)[0])
        raise InputError(
            path,
            f"pid {pids[row]} has code {codes[row, layer]} in layer {layer}",
            f"codes of that layer go from 0 to {spec.codebook_sizes[layer] - 1}",
        )
    if len(np.unique(pids)) != len(pids):
        raise InputError(path, "names a pid twice", "one row an item")
    return pids, codes.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TrieLevel:
    """The step from the nodes of one depth to their children, in compressed rows.

    Children of node ``i`` are nodes ``start[i]`` to ``start[i + 1] - 1`` of the next depth; ``code`` int64
    [n_children] is the code that leads to each. The nodes of the last depth are the rows of `ItemIndex.sids`.
    """

    start: np.ndarray
    code: np.ndarray


class ItemIndex:
    """The catalogue by SID. One SID may name several items; they are kept by popularity, then by pid.

    ``sids`` int32 [n_sids, n_layers] holds every existing SID once, sorted, ``keys`` each as one number (`pack`);
    ``levels`` is its trie.
    """

    def __init__(
        self, pids: np.ndarray, codes: np.ndarray, spec: SidSpec, popularity: Mapping[int, int] | None = None
    ) -> None:
        self.spec = spec
        self.n_items = len(pids)
        pids, keys = np.asarray(pids, dtype=np.int64), pack(codes, spec)
        by_key = (pids, keys)
        if popularity:
            by_key = (pids, -np.array([popularity.get(pid, 0) for pid in pids.tolist()]), keys)
        order = np.lexsort(by_key)
        self._pids, keys = pids[order], keys[order]
        first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
        self._bounds, self.keys = np.append(first, len(pids)), keys[first]
        self.sids = np.asarray(codes, dtype=np.int32)[order[first]]
        self.levels = _build_trie(self.sids)

    @classmethod
    def load(cls, path: str | Path, spec: SidSpec, popularity: Mapping[int, int] | None = None) -> ItemIndex:
        """Read the index from ``pid2sid.parquet``; ``popularity`` maps pid to a count."""
        return cls(*read_pid2sid(path, spec), spec, popularity)

    def __contains__(self, codes: tuple[int, ...]) -> bool:
        return self.row_of(codes) is not None

    def row_of(self, codes: tuple[int, ...]) -> int | None:
        """The row of a SID in ``sids``; None where it does not exist."""
        if len(codes) != self.spec.n_layers:
            return None
        row = int(self.rows_of(np.array([codes], dtype=np.int64))[0])
        return None if row < 0 else row

    def rows_of(self, codes: np.ndarray) -> np.ndarray:
        """The row in ``sids`` of every SID of codes [n, n_layers], int64 [n]; -1 where it does not exist."""
        inside = ((codes >= 0) & (codes < np.array(self.spec.codebook_sizes))).all(1)
        keys = pack(np.where(inside[:, None], codes, 0), self.spec)
        rows = np.searchsorted(self.keys, keys)
        rows[rows == len(self.keys)] = 0
        return np.where(inside & (self.keys[rows] == keys), rows, -1) if len(self.keys) else np.full(len(codes), -1)

    def pids_of(self, codes: tuple[int, ...]) -> list[int]:
        """The items that a SID names, most popular first; empty where the SID does not exist."""
        row = self.row_of(codes)
        return [] if row is None else self.pids_at(row)

    def pids_at(self, row: int) -> list[int]:
        """The items that row ``row`` of ``sids`` names, most popular first."""
        return self._pids[self._bounds[row] : self._bounds[row + 1]].tolist()

    @functools.cached_property
    def digest(self) -> str:
        """What tells one set of SIDs from another: 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(np.ascontiguousarray(self.sids, dtype=np.int32).tobytes()).hexdigest()[:16]

    @functools.cached_property
    def first_leaf(self) -> list[np.ndarray]:
        """For every depth the first row of ``sids`` below each node, int64 [n_nodes]; the next node's is the end."""
        leaves = [np.arange(len(self.sids))]
        for level in self.levels[:0:-1]:
            leaves.insert(0, leaves[0][level.start[:-1]])
        return leaves

    def rows_naming(self, pids: np.ndarray) -> np.ndarray:
        """The row in ``sids`` of every item of ``pids`` [n], int64 [n]; -1 where no SID names it."""
        if not self.n_items:
            return np.full(len(pids), -1)
        order, known = self._by_pid
        place = np.searchsorted(known, pids).clip(max=len(known) - 1)
        rows = np.searchsorted(self._bounds, order[place], side="right") - 1
        return np.where(known[place] == pids, rows, -1)

    def sids_within(self, pids: Collection[int]) -> list[tuple[int, ...]]:
        """The SIDs that name items of ``pids`` and no others, in catalogue order."""
        rows = self.rows_naming(np.array(sorted(pids), dtype=np.int64))
        rows, count = np.unique(rows[rows >= 0], return_counts=True)
        whole = rows[count == self._bounds[rows + 1] - self._bounds[rows]]
        return list(map(tuple, self.sids[whole].tolist()))

    @functools.cached_property
    def _by_pid(self) -> tuple[np.ndarray, np.ndarray]:
        """(Places in ``_pids`` by rising pid, the pids in that order)."""
        order = np.argsort(self._pids)
        return order, self._pids[order]


def pack(codes: np.ndarray, spec: SidSpec) -> np.ndarray:
    """Every SID of codes [n, n_layers] as one number, uint64 [n], in the order of the SIDs.

    Raises `InputError` where the codebooks have more SIDs than 64 bits can tell apart.
    """
    if math.prod(spec.codebook_sizes) > 1 << 64:
        raise InputError("SIDs", f"codebooks of {spec.codebook_sizes} take more than 64 bits", "fewer layers or codes")
    keys = np.zeros(len(codes), np.uint64)
    for layer, size in enumerate(spec.codebook_sizes):
        keys = keys * np.uint64(size) + codes[:, layer].astype(np.uint64)
    return keys


def _build_trie(sids: np.ndarray) -> list[TrieLevel]:
    """The trie of lexicographically sorted, unique ``sids`` [n, L], one `TrieLevel` a depth."""
    n, depth = sids.shape
    levels = []
    parents = np.zeros(n, dtype=np.int64)  # the node of every SID at the current depth; the root at first
    n_parents = 1
    for level in range(depth):
        new = np.ones(n, dtype=bool)
        new[1:] = (parents[1:] != parents[:-1]) | (sids[1:, level] != sids[:-1, level])
        rows = np.flatnonzero(new)
        start = np.searchsorted(parents[rows], np.arange(n_parents + 1))
        levels.append(TrieLevel(start, sids[rows, level].astype(np.int64)))
        parents = np.cumsum(new) - 1
        n_parents = len(rows)
    return levels
