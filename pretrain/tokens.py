"""Tokenized samples, in memory or in files that all processes of a run map.

With files memory does not grow with the data, one process tokenizes for all, and a resumed run tokenizes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from onerec.errors import reading
from onerec.folders import atomic_path
from onerec.run import read_json, write_json
from pretrain.ranks import Processes, run_processes


@dataclasses.dataclass
class Samples:
    """Tokenized samples, flat: sample ``i`` is ``ids[starts[i]:starts[i + 1]]``.

    ``ids`` int32 [tokens], ``learn`` bool [tokens], ``starts`` int64 [n + 1], ``source`` int32 [n] (row of
    ``source_names``), ``shard`` int32 [n]. ``rows`` counts all rows read; ``bad`` rows that break the format and
    ``left_out`` rows that the config excludes, by reason. ``learnt`` counts the learnt tokens; ``digest`` is of all
    tokens, their masks and the lengths.
    """

    ids: np.ndarray
    learn: np.ndarray
    starts: np.ndarray
    source: np.ndarray
    shard: np.ndarray
    source_names: list[str]
    rows: int
    bad: Counter[str]
    left_out: Counter[str]
    learnt: int
    digest: str

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every sample, int64 [n]."""
        return np.diff(self.starts)


@dataclasses.dataclass
class Part:
    """The samples of one shard: ``ids`` int32 and ``learn`` bool [tokens], ``lengths`` int64 and ``sources`` [n]."""

    ids: np.ndarray
    learn: np.ndarray
    lengths: np.ndarray
    sources: list[str]
    rows: int
    bad: Counter[str]
    left_out: Counter[str]

    def write(self, file: BinaryIO) -> None:
        """Write it so that `read` gives the same."""
        facts = json.dumps([self.rows, self.bad, self.left_out])
        sources = np.array(self.sources, dtype=np.str_)
        np.savez(file, ids=self.ids, learn=self.learn, lengths=self.lengths, sources=sources, facts=facts)

    @classmethod
    def read(cls, path: Path) -> Part:
        with np.load(path) as arrays:
            rows, bad, left_out = json.loads(str(arrays["facts"]))
            numbers = (arrays[name] for name in ("ids", "learn", "lengths"))
            return cls(*numbers, arrays["sources"].tolist(), rows, Counter(bad), Counter(left_out))


class Tokens:
    """Token arrays as they come: in memory, or in two flat files of ``folder``."""

    NAMES = (("ids.bin", np.int32), ("learn.bin", bool))

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._parts = [(np.zeros(0, np.int32), np.zeros(0, bool))]

    def add(self, part: Part) -> None:
        if self._folder is None:
            self._parts.append((part.ids, part.learn))
            return
        for (name, _), array in zip(self.NAMES, (part.ids, part.learn), strict=True):
            with open(self._folder / name, "ab") as file:
                array.tofile(file)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids, learn), all of them; files are mapped, so that processes share what is read."""
        if self._folder is None:
            return tuple(np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        paths = [(self._folder / name, dtype) for name, dtype in self.NAMES]
        full = all(path.exists() and path.stat().st_size for path, _ in paths)
        return tuple(np.memmap(path, dtype, "r") if full else np.zeros(0, dtype) for path, dtype in paths)


def collect(parts: Iterator[Part], tokens: Tokens) -> Samples:
    """All shards' samples, their tokens held by ``tokens``."""
    digest = hashlib.blake2b(digest_size=16)
    lengths, sources, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], []
    met: dict[str, int] = {}
    rows = learnt = 0
    bad: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for part in parts:
        tokens.add(part)
        for array in (part.ids, part.learn, part.lengths):
            digest.update(array.tobytes())
        lengths.append(part.lengths)
        sources.append(np.array([met.setdefault(name, len(met)) for name in part.sources], dtype=np.int32))
        counts.append(len(part.lengths))
        rows, learnt = rows + part.rows, learnt + int(part.learn.sum())
        bad, left_out = bad + part.bad, left_out + part.left_out
    names = sorted(met)
    number = np.zeros(len(met), np.int32)
    number[[met[name] for name in names]] = np.arange(len(names))
    ids, learn = tokens.arrays()
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    source = number[np.concatenate(sources)]
    shard = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    return Samples(ids, learn, starts, source, shard, names, rows, bad, left_out, learnt, digest.hexdigest())


class _Made(Exception):
    """Another run has made the same meanwhile; its processes have mapped the files, so ours give way."""


class TokenFolder:
    """Folders of tokens under ``root``, each named by all that its tokens depend on.

    Of the processes of a run the first makes them, or the first of each node where the nodes have no common folder; the
    others wait for it, as long as it lives (`pretrain.ranks`).
    """

    ARRAYS = ("starts", "source", "shard")
    FACTS = ("source_names", "rows", "bad", "left_out", "learnt", "digest")

    def __init__(self, root: Path, processes: Processes | None = None) -> None:
        self.root = root
        self.processes = processes or run_processes()

    def samples(self, key: Callable[[], str], make: Callable[[], Iterator[Part]]) -> Samples:
        """The tokens that ``key`` names, mapped; a folder of that name is not made again.

        Raises `InputError`, on every process, where they cannot be made.
        """

        def fill(name: str) -> None:
            if not (self.root / name).is_dir():
                self._write(self.root / name, make())

        return self._mapped(self.root / self.processes.make_folder(self.root, key, fill))

    def _write(self, path: Path, parts: Iterator[Part]) -> None:
        with contextlib.suppress(_Made), atomic_path(path, ours=True) as temporary:
            temporary.mkdir(parents=True)
            samples = collect(parts, Tokens(temporary))
            np.savez(temporary / "samples.npz", **{name: getattr(samples, name) for name in self.ARRAYS})
            write_json(temporary / "samples.json", {name: getattr(samples, name) for name in self.FACTS})
            if path.is_dir():
                raise _Made

    def _mapped(self, path: Path) -> Samples:
        facts = read_json(path / "samples.json")
        facts |= {name: Counter(facts[name]) for name in ("bad", "left_out")}
        with reading(path, "is not whole", "remove it; it is made again"):
            with np.load(path / "samples.npz") as file:
                arrays = {name: file[name] for name in self.ARRAYS}
            for name, dtype in Tokens.NAMES:
                found, wanted = (path / name).stat().st_size, int(arrays["starts"][-1]) * np.dtype(dtype).itemsize
                if found != wanted:
                    raise ValueError(f"{name} has {found:,} bytes of {wanted:,}")
        ids, learn = Tokens(path).arrays()
        return Samples(ids=ids, learn=learn, **arrays, **facts)
