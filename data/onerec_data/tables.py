"""Item tables as arrays: pid to SID text, pid to tags. Built for catalogues of tens of millions of items.

A `Context` holds them, with the seed, the layout and the prompts, for every builder.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.onerec_data.layout import Layout
from data.onerec_data.text import MARK, Draws
from data.onerec_data.wording import Prompts
from onerec.catalog import read_pid2sid
from onerec.errors import InputError
from onerec.parquet import Kind, column_types, integers, is_list, list_parts, plain, read_table, texts
from onerec.sid import BEGIN, END, SidSpec
from onerec.tasks import Task

# A table addressed by pid is the fastest lookup; it is used where it costs at most this many entries an item.
_DIRECT_ENTRIES_PER_ITEM = 16
# A null or unreadable pid keeps its place, for the masks beside the list; no item has this one.
NO_PID = np.iinfo(np.int64).min


class PidIndex:
    """pid to row number, for arrays of pids at once."""

    def __init__(self, pids: np.ndarray) -> None:
        low, high = (int(pids.min()), int(pids.max())) if len(pids) else (0, 0)
        self._direct = None
        if low >= 0 and high < _DIRECT_ENTRIES_PER_ITEM * max(len(pids), 1 << 12):
            self._direct = np.full(high + 2, -1, np.int32)
            self._direct[pids] = np.arange(len(pids), dtype=np.int32)
        else:
            self._order = np.argsort(pids, kind="stable").astype(np.int32)
            self._sorted = pids[self._order]

    def find(self, pids: np.ndarray) -> np.ndarray:
        """Rows int64 of the shape of ``pids``; -1 where a pid is not there."""
        if self._direct is not None:
            last = len(self._direct) - 1  # an entry that no pid has
            inside = np.where((pids >= 0) & (pids < last), pids, last)
            return self._direct[inside].astype(np.int64)
        # Sorted queries keep the binary search in the cache.
        unique, inverse = np.unique(pids, return_inverse=True)
        place = np.minimum(np.searchsorted(self._sorted, unique), len(self._sorted) - 1)
        rows = np.where((self._sorted[place] == unique) & (unique != NO_PID), self._order[place], -1)
        return rows[inverse].astype(np.int64)


class SidTable:
    """pid to SID text of one pid space (video and ad, or product)."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path = path
        self.spec = SidSpec.of_folder(path.parent)
        pid, column = layout.item_columns("sids", ("pid", "codes"), path)
        self.dropped: Counter[str] = Counter()
        pids, codes = read_pid2sid(path, self.spec, pid, column, self.dropped)
        self._codes = codes.astype(np.int16 if max(self.spec.codebook_sizes) < 1 << 15 else np.int32)
        self._index = PidIndex(pids)
        self.n_items = len(pids)
        layers = [[self.spec.token(i, code) for code in range(size)] for i, size in enumerate(self.spec.codebook_sizes)]
        layers[0] = [BEGIN + token for token in layers[0]]
        layers[-1] = [token + END for token in layers[-1]]
        self._tokens = [pa.array(tokens) for tokens in layers]

    def find(self, pids: np.ndarray) -> np.ndarray:
        """Rows of the table int64 of the shape of ``pids``; -1 where a pid has no SID."""
        return self._index.find(pids)

    def texts(self, rows: np.ndarray) -> pa.StringArray:
        """SID texts of table rows."""
        codes = self._codes[rows]
        parts = [tokens.take(pa.array(codes[:, layer])) for layer, tokens in enumerate(self._tokens)]
        return pc.binary_join_element_wise(*parts, "") if len(parts) > 1 else parts[0]

    def joined(self, rows: np.ndarray, offsets: np.ndarray) -> list[bytes]:
        """SID texts of ``rows`` joined group by group; group i is ``rows[offsets[i]:offsets[i + 1]]``."""
        if not len(rows):
            return [b""] * (len(offsets) - 1)
        texts = self.texts(rows)
        _, starts, data = texts.buffers()
        starts = np.frombuffer(starts, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        bounds = starts[offsets].tolist()
        view = memoryview(data)
        return [bytes(view[a:b]) for a, b in itertools.pairwise(bounds)]

    def text(self, pid: int) -> bytes | None:
        """The SID text of one item; None where it has none."""
        row = self.find(np.array([pid]))[0]
        return None if row < 0 else self.spec.format(self._codes[row].tolist()).encode()


@dataclasses.dataclass(frozen=True)
class TagTable:
    """pid to tags, from the captions' table: a list of strings, or one string with separators."""

    index: PidIndex
    offsets: np.ndarray
    ids: np.ndarray
    names: list[str]

    def of(self, pids: np.ndarray) -> list[str]:
        """The tags of items, in the items' order, as often as they come."""
        rows = self.index.find(pids)
        rows = rows[rows >= 0]
        return [self.names[i] for row in rows for i in self.ids[self.offsets[row] : self.offsets[row + 1]].tolist()]


SEPARATORS = r"[,，、;；|/]"


def read_tags(path: Path, layout: Layout) -> TagTable | None:
    """The tags column of the captions' table; None where there is none."""
    names = list(column_types(path))
    column, pid = (layout.item_column("captions", part, names) for part in ("tags", "pid"))
    if column is None or pid is None:
        return None
    table = read_table(path, {pid: Kind.INT}, [column])
    try:
        values = plain(table[column])
        if not is_list(values.type):
            values = pc.split_pattern_regex(texts(values)[0], SEPARATORS)
        items, offsets, _ = list_parts(values)
        flat = pc.utf8_trim_whitespace(texts(items)[0])
    except TypeError:
        wanted = "a list of strings, or text, is wanted"
        raise InputError(path, f"column {column} is {table[column].type}", wanted) from None
    pids, keep, _ = integers(table[pid])
    row = np.repeat(np.arange(len(keep)), np.diff(offsets))
    good = pc.invert(pc.match_substring_regex(flat, MARK.pattern)).fill_null(False).to_numpy(zero_copy_only=False)
    good &= keep[row]
    flat = flat.filter(pa.array(good)).dictionary_encode()
    lengths = np.bincount(row[good], minlength=len(keep))[keep]
    ids, offsets = flat.indices.to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(lengths)])
    return TagTable(PidIndex(pids[keep]), offsets, ids, flat.dictionary.to_pylist())


_PID_MARK = re.compile(r"<pid:(\d{1,18})>")


@dataclasses.dataclass(frozen=True)
class Context:
    """Shared, read-only state of a run over the tasks; every worker has one."""

    video: SidTable
    product: SidTable | None
    tags: TagTable | None
    seed: int
    layout: Layout
    prompts: Prompts

    def draws(self, task: Task, *what: object) -> Draws:
        """The draws of wording for one thing of a task."""
        return Draws(self.seed, task.name, *what)

    def fill_marks(self, text: str) -> tuple[str, int]:
        """(``text`` with its pid marks turned into SIDs, how many had none)."""
        sids = {pid: self.video.text(int(pid)) for pid in _PID_MARK.findall(text)}
        missing = sum(sids[pid] is None for pid in _PID_MARK.findall(text))
        return _PID_MARK.sub(lambda mark: (sids[mark[1]] or b"").decode(), text), missing


def load_context(
    pid2sid: Path,
    product_pid2sid: Path | None,
    caption: Path | None,
    seed: int,
    layout: Layout,
    prompts: Prompts,
) -> Context:
    """Read the tables that the tasks need; both SID tables must have the same codebooks."""
    video = SidTable(pid2sid, layout)
    product = SidTable(product_pid2sid, layout) if product_pid2sid else None
    if product and not product.spec.same_codebooks(video.spec):
        right = f"those of {pid2sid}: {video.spec.codebook_sizes}"
        raise InputError(product.path, f"has codebooks {product.spec.codebook_sizes}", right)
    return Context(video, product, read_tags(caption, layout) if caption else None, seed, layout, prompts)
