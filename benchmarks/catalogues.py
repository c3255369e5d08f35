"""The benchmark data of a folder; from SIDs to items: the catalogue, and what a SID of several items resolves to.

Two forms of a catalogue are read: the data stage's ``<catalogue>_pid2sid.parquet``, and the release's ``sid2pid.json``
(videos and ads) and ``sid2iid.json`` (products): key c1·8192² + c2·8192 + c3, value a list of
``{"pid" or "iid", "count", "count_after_downsample"}``.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prior import PriorFile
from benchmarks.tasks import TASKS, BenchTask, Example, load_examples, load_spec
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.ids import ITEM_IDS, USER_IDS, Names
from onerec.parquet import Kind, read_table, whole_number
from onerec.prompts import Words
from onerec.run import Manifest, read_json
from onerec.sid import SidSpec
from onerec.tasks import VIDEO_AD

SEQUENCES = "train_sequences.parquet"
RELEASE_FILES = {"video_ad": ("sid2pid.json", "pid"), "product": ("sid2iid.json", "iid")}
RELEASE_BASE = 8192
COUNTS = ("count", "count_after_downsample")
POLICIES = ("all", "popular", "random")
MOST_SIDS = 1 << 21  # of a search without constraint


class BenchData:
    """A benchmark_data folder: its SIDs, and each catalogue once. ``count`` is the popularity of `load_catalogue`."""

    def __init__(self, folder: Path, count: str = COUNTS[0]) -> None:
        self.folder, self.count = folder, count
        self._indexes: dict[str, ItemIndex] = {}
        self._priors: dict[Path, PriorFile] = {}

    @functools.cached_property
    def spec(self) -> SidSpec:
        """See `load_spec`."""
        return load_spec(self.folder)

    @functools.cached_property
    def words(self) -> Words:
        """What the prompts of the data call things."""
        return Words.of_folder(self.folder)

    @functools.cached_property
    def items(self) -> Names:
        """The own ids of videos and ads."""
        return Names(self.folder / ITEM_IDS)

    @functools.cached_property
    def users(self) -> Names:
        """The own ids of users."""
        return Names(self.folder / USER_IDS)

    def own_ids(self, line: dict[str, Any], task: str, back: bool = False) -> dict[str, Any]:
        """A line of a task's predictions with people's own ids; ``back``: with the numbers inside."""
        found = dict(line)
        change = Names.number if back else Names.show
        if self.users and "uid" in line:
            found["uid"] = change(self.users, line["uid"])
        if self.items and task in TASKS and TASKS[task].catalogue == VIDEO_AD:
            found |= {key: [change(self.items, pid) for pid in line[key]] for key in ("answer", "items") if key in line}
        return found

    def examples(
        self, task: BenchTask, sample_size: int = -1, manifest: Manifest | None = None, seed: int = 0
    ) -> list[Example]:
        """See `load_examples`."""
        return load_examples(self.folder, task, sample_size, manifest, seed=seed)

    def index(self, task: BenchTask) -> ItemIndex:
        """The catalogue that a task's items are from."""
        name = task.catalogue
        if name not in self._indexes:
            self._indexes[name] = load_catalogue(self.folder, name, self.spec, self.count)
        return self._indexes[name]

    def prior(self, path: Path) -> PriorFile:
        """The item prior of a file."""
        if path not in self._priors:
            self._priors[path] = PriorFile.read(path)
        return self._priors[path]


def load_catalogue(folder: Path, name: str, spec: SidSpec, count: str = COUNTS[0]) -> ItemIndex:
    """The catalogue ``video_ad`` or ``product`` of a benchmark data folder.

    Items of one SID are ordered by popularity: how often training targets them, or in the release's form its ``count``
    (one of `COUNTS`). Raises `InputError` where there is no catalogue, or it holds a SID outside ``spec``.
    """
    table = folder / f"{name}_pid2sid.parquet"
    if table.exists():
        return ItemIndex.load(table, spec, target_counts(folder).get(name, {}))
    path = folder / RELEASE_FILES[name][0]
    if not path.exists():
        raise InputError(folder, f"has no catalogue of {name}", f"{table.name} or {path.name}")
    return ItemIndex(*read_release(path, RELEASE_FILES[name][1], spec, count))


def every_sid(spec: SidSpec) -> ItemIndex:
    """All combinations of codes as a catalogue, for a search without constraint; the numbers of its items mean nothing.

    Raises `InputError` where there are more than `MOST_SIDS`.
    """
    count = math.prod(spec.codebook_sizes)
    if count > MOST_SIDS:
        right = f"at most {MOST_SIDS:,}; --free_sids measures what is generated freely"
        raise InputError("--unconstrained", f"has {count:,} SIDs to search", right)
    codes = np.indices(spec.codebook_sizes, dtype=np.int32).reshape(spec.n_layers, -1).T
    return ItemIndex(np.arange(count), codes, spec)


def target_counts(folder: Path) -> dict[str, dict[int, int]]:
    """By catalogue, how often each item is a target of the training users; empty without their sequences."""
    counts: dict[str, dict[int, int]] = {}
    if not (folder / SEQUENCES).exists():
        return counts
    kinds = {"task": Kind.TEXT, "target_pid": Kind.INTS}
    for row in read_table(folder / SEQUENCES, kinds, allow_empty=True).to_pylist():
        if row["task"] in TASKS:
            found = counts.setdefault(TASKS[row["task"]].catalogue, {})
            for pid in row["target_pid"] or []:
                found[pid] = found.get(pid, 0) + 1
    return counts


def read_release(
    path: Path, id_key: str, spec: SidSpec, count: str
) -> tuple[np.ndarray, np.ndarray, SidSpec, dict[int, int]]:
    """The release's SID table: ids int64 [n], codes int32 [n, 3], the spec and the items' counts."""
    value = read_json(path)
    if spec.n_layers != 3:
        raise InputError(path, "holds SIDs of 3 layers", f"the benchmark data have {spec.n_layers}")
    if not isinstance(value, dict) or not value:
        raise InputError(path, "holds no SID", f"an object of SID number to a list of {{{id_key}, {count}}}")
    ids: list[int] = []
    keys: list[int] = []
    popularity: dict[int, int] = {}
    for key, items in value.items():
        try:
            for item in items:
                ids.append(whole_number(item[id_key]))
                keys.append(whole_number(int(key)))
                popularity[ids[-1]] = whole_number(item[count])
        except (KeyError, TypeError, ValueError) as error:
            what = f"SID {key} has no usable items ({error!r})"
            raise InputError(path, what, f"a list of {{{id_key}, {count}}}") from None
    if len(popularity) != len(ids):
        raise InputError(path, f"names a {id_key} twice", "one SID an item")
    number = np.array(keys, dtype=np.int64)
    layers = [number // RELEASE_BASE**2, number // RELEASE_BASE % RELEASE_BASE, number % RELEASE_BASE]
    codes = np.stack(layers, axis=1)
    outside = (codes < 0) | (codes >= np.array(spec.codebook_sizes))
    if outside.any():
        row, layer = (int(x) for x in np.argwhere(outside)[0])
        what = f"SID {keys[row]} has code {codes[row, layer]} in layer {layer}"
        raise InputError(path, what, f"codes of that layer go from 0 to {spec.codebook_sizes[layer] - 1}")
    return np.array(ids, dtype=np.int64), codes.astype(np.int32), spec, popularity


def resolve(
    index: ItemIndex,
    sids: Sequence[tuple[int, ...]],
    policy: str,
    seed: int = 0,
    uuid: str = "",
    skip: Collection[int] = (),
) -> list[int]:
    """Items of ranked SIDs, best first: of a SID that names several ``all``, most popular first, the most ``popular``
    alone, or one at ``random`` (drawn from the seed and the row's uuid). Items of ``skip`` are never named.
    """
    draw = np.random.default_rng([seed, zlib.crc32(uuid.encode())]) if policy == "random" else None
    items: list[int] = []
    for codes in sids:
        pids = [pid for pid in index.pids_of(codes) if pid not in skip]
        if policy == "popular":
            pids = pids[:1]
        elif draw is not None and pids:
            pids = [pids[int(draw.integers(len(pids)))]]
        items += pids
    return list(dict.fromkeys(items))


def sids_of(index: ItemIndex) -> dict[int, tuple[int, ...]]:
    """The SID of every item."""
    found: dict[int, tuple[int, ...]] = {}
    for row in index.sids.tolist():
        found.update(dict.fromkeys(index.pids_of(tuple(row)), tuple(row)))
    return found
