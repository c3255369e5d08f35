"""The item index: which SIDs exist, which items each names, and the trie that constrained decoding walks."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from onerec.content import files_digest
from onerec.errors import InputError
from onerec.folders import atomic_path
from onerec.model_folder import tensor_headers
from onerec.parquet import Kind, column_types, count_rows, integers, iter_batches, list_parts
from onerec.sid import SidSpec

_ROWS = 1 << 18  # of a table at a time


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
    found, first = [], 0
    for batch in iter_batches(path, {pid: Kind.INT, column: Kind.INTS}, batch_size=_ROWS):
        found.append(_pids_and_codes(path, batch[pid], batch[column], spec, first, dropped))
        first += batch.num_rows
    if first == 0:
        raise InputError(path, "is an empty table", "give at least one row")
    pids, codes = map(np.concatenate, zip(*found, strict=True))
    if len(np.unique(pids)) != len(pids):
        raise InputError(path, "names a pid twice", "one row an item")
    return pids, codes


def _pids_and_codes(
    path: str | Path, pid: pa.Array, sid: pa.Array, spec: SidSpec, first: int, dropped: Counter[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """`read_pid2sid` of some rows, of which ``first`` is the first."""
    items, offsets, _ = list_parts(sid)
    lengths = np.diff(offsets)
    if items.null_count:
        raise InputError(path, "has a code that is null", f"every SID has {spec.n_layers} codes")
    if (wrong := lengths != spec.n_layers).any():
        bad = int(np.flatnonzero(wrong)[0])
        raise InputError(path, f"row {first + bad} has {lengths[bad]} codes", f"every SID has {spec.n_layers}")
    pids, has_pid, _ = integers(pid)
    codes = items.to_numpy(zero_copy_only=False).reshape(-1, spec.n_layers)
    if not has_pid.all():
        if dropped is None:
            raise InputError(path, f"row {first + int(np.flatnonzero(~has_pid)[0])} has no pid", "an item a row")
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
    return pids, codes.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class TrieLevel:
    """The step from the nodes of one depth to their children, in compressed rows.

    Children of node ``i`` are nodes ``start[i]`` to ``start[i + 1] - 1`` of the next depth; ``code`` int32
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
        self._fill(_tables(pids, codes, spec), spec, popularity)

    @classmethod
    def load(cls, path: str | Path, spec: SidSpec, popularity: Mapping[int, int] | None = None) -> ItemIndex:
        """Read the index from ``pid2sid.parquet``; ``popularity`` maps pid to a count.

        A large catalogue is kept ready in a file beside it, ``.<name>.map``, which is mapped into memory: once a
        process, and shared by all of a machine. It is made anew where the content of ``path`` is another. Such an
        index is pickled as its path.
        """
        if count_rows(path) < _MAPPED_FROM:
            return cls(*read_pid2sid(path, spec), spec, popularity)
        made_from = f"{_FORMAT} {list(spec.codebook_sizes)} {files_digest([path])}"
        index = cls.__new__(cls)
        index._fill(_mapped(Path(path), spec, made_from), spec, popularity)
        index._source = (str(path), made_from)
        return index

    def _fill(self, tables: dict[str, np.ndarray], spec: SidSpec, popularity: Mapping[int, int] | None) -> None:
        self.spec, self._popularity = spec, popularity or {}
        self._source: tuple[str, str] | None = None
        self._pids, self._bounds, self.keys, self.sids = (tables[k] for k in ("pids", "bounds", "keys", "sids"))
        self.n_items = len(self._pids)
        self.levels = [TrieLevel(tables[f"start{d}"], tables[f"code{d}"]) for d in range(spec.n_layers)]

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is None:
            return super().__reduce__()
        return _reopened, (*self._source, self.spec, self._popularity)

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
        pids = self._pids[self._bounds[row] : self._bounds[row + 1]].tolist()
        return sorted(pids, key=lambda pid: -self._popularity.get(pid, 0)) if self._popularity else pids

    @functools.cached_property
    def digest(self) -> str:
        """What tells one set of SIDs from another: 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(np.ascontiguousarray(self.sids, dtype=np.int32)).hexdigest()[:16]

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
        places = order[place].astype(self._bounds.dtype)  # of another type the whole table would be converted
        rows = np.searchsorted(self._bounds, places, side="right") - 1
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
        levels.append(TrieLevel(_small(start), sids[rows, level]))
        parents = np.cumsum(new) - 1
        n_parents = len(rows)
    return levels


def _small(places: np.ndarray) -> np.ndarray:
    """Places in a table, the last of which is its end, as int32 where they fit."""
    return places.astype(np.int32 if places[-1] < 1 << 31 else np.int64)


def _tables(pids: np.ndarray, codes: np.ndarray, spec: SidSpec) -> dict[str, np.ndarray]:
    """What an index consists of: items by SID and pid, where each SID's begin, SIDs, their keys, and the trie."""
    pids, keys = np.asarray(pids, dtype=np.int64), pack(codes, spec)
    order = np.lexsort((pids, keys))
    keys = keys[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.empty(0, np.int64)
    tables = {"pids": pids[order], "bounds": _small(np.append(first, len(pids))), "keys": keys[first]}
    tables["sids"] = np.asarray(codes, dtype=np.int32)[order[first]]
    for depth, level in enumerate(_build_trie(tables["sids"])):
        tables |= {f"start{depth}": level.start, f"code{depth}": level.code}
    return tables


# Catalogues of as many items are mapped (below, reading the Parquet file takes a fraction of a second); the version of
# the file's layout; and what this process has mapped, by what it was made from.
_MAPPED_FROM = 1_000_000
_FORMAT = "onerec catalogue 1"
_MAPS: dict[str, dict[str, np.ndarray]] = {}


def _mapped(path: Path, spec: SidSpec, made_from: str) -> dict[str, np.ndarray]:
    """The tables of the catalogue ``path``, mapped from the file beside it, which is made where it is missing or old.

    Where that cannot be written, the tables are held in memory.
    """
    if made_from in _MAPS:
        return _MAPS[made_from]
    file = path.with_name(f".{path.name}.map")
    if (tables := _read_map(file, made_from)) is None:
        from safetensors.numpy import save_file

        made = _tables(*read_pid2sid(path, spec), spec)
        label = np.frombuffer(made_from.encode(), np.uint8)
        with contextlib.suppress(InputError, OSError), atomic_path(file) as temporary:
            save_file(
                {name: np.ascontiguousarray(table) for name, table in {**made, "made_from": label}.items()}, temporary
            )
        tables = _read_map(file, made_from) or made
    return _MAPS.setdefault(made_from, tables)


def _read_map(file: Path, made_from: str) -> dict[str, np.ndarray] | None:
    """The tables of a file of `_mapped`; None where it is not there, damaged, or made from something else."""
    if not file.is_file():
        return None
    try:
        found = tensor_headers(file)
        # Copied on write: torch wants arrays that may be written to, and nothing writes.
        tables = {
            name: np.asarray(np.memmap(file, _TYPES[one.dtype], "c", one.begin, one.shape))
            for name, one in found.items()
        }
    except (InputError, OSError, KeyError, ValueError):
        return None
    return tables if tables.pop("made_from", np.empty(0, np.uint8)).tobytes() == made_from.encode() else None


_TYPES = {"I32": np.int32, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}


def _reopened(path: str, made_from: str, spec: SidSpec, popularity: Mapping[int, int]) -> ItemIndex:
    """The index that was pickled as its path."""
    if made_from in _MAPS:
        index = ItemIndex.__new__(ItemIndex)
        index._fill(_MAPS[made_from], spec, popularity)
        index._source = (path, made_from)
        return index
    index = ItemIndex.load(path, spec, popularity)
    if index._source is None or index._source[1] != made_from:
        raise InputError(path, "has changed since it was opened", "start again with one catalogue")
    return index
