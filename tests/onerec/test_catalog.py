"""The item index: one SID may name several items, by popularity; its trie walks every SID once."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pytest

from onerec import catalog
from onerec.catalog import ItemIndex, read_pid2sid
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.sid import SidSpec

SPEC = SidSpec((4, 4))
PIDS = np.array([10, 11, 12, 13, 14])
CODES = np.array([[1, 2], [0, 3], [1, 2], [1, 0], [1, 2]], dtype=np.int32)


def test_items_of_a_sid_come_by_popularity_then_pid():
    index = ItemIndex(PIDS, CODES, SPEC, {12: 5, 10: 1})
    assert index.pids_of((1, 2)) == [12, 10, 14] and index.pids_of((3, 3)) == []
    assert (index.n_items, len(index.sids)) == (5, 3) and (1, 0) in index and (0, 0) not in index


def test_the_trie_spells_every_sid():
    index = ItemIndex(PIDS, CODES, SPEC)
    first, second = index.levels
    spelled = [
        (int(first.code[node]), int(second.code[leaf]))
        for node in range(first.start[0], first.start[1])
        for leaf in range(second.start[node], second.start[node + 1])
    ]
    assert spelled == [(0, 3), (1, 0), (1, 2)] == [tuple(sid) for sid in index.sids.tolist()]


def test_sids_within_a_set_name_nothing_outside_it():
    index = ItemIndex(PIDS, CODES, SPEC)
    assert index.sids_within({11, 12, 10}) == [(0, 3)]
    assert index.sids_within({10, 12, 14, 99}) == [(1, 2)]


def test_lookups_are_those_of_a_dictionary():
    spec = SidSpec((16, 3, 500))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, spec.codebook_sizes, (2000, 3)).astype(np.int32)
    pids = rng.permutation(10_000)[:2000]
    index = ItemIndex(pids, codes, spec)
    names = {}
    for pid, sid in sorted(zip(pids.tolist(), map(tuple, codes.tolist()), strict=True)):
        names.setdefault(sid, []).append(pid)
    assert list(map(tuple, index.sids.tolist())) == sorted(names)
    asked = np.concatenate([rng.integers(-1, 600, (500, 3)), codes[:500]])
    for sid, row in zip(map(tuple, asked.tolist()), index.rows_of(asked).tolist(), strict=True):
        assert (sid in index) == (sid in names) == (row >= 0) and index.pids_of(sid) == names.get(sid, [])
        assert index.row_of(sid) == (row if row >= 0 else None)
    some = set(pids[:900].tolist()) | {-5, 10_001}
    assert index.sids_within(some) == [sid for sid in sorted(names) if some.issuperset(names[sid])]
    assert (1, 2) not in index and not index.sids_within(())


def test_codebooks_past_64_bits_are_refused():
    with pytest.raises(InputError, match="more than 64 bits"):
        ItemIndex(PIDS, np.zeros((5, 5), np.int32), SidSpec((1 << 13,) * 5))
    full = ItemIndex(PIDS[:1], np.full((1, 8), 255, np.int32), SidSpec((256,) * 8))
    assert (255,) * 8 in full and (0,) * 8 not in full


@pytest.mark.parametrize("column", ["codes", "sid"])
def test_the_file_reads_with_either_column_name(tmp_path, column):
    write_table(
        tmp_path / "x.parquet",
        pa.table({"pid": PIDS, column: pa.array(CODES.tolist(), pa.list_(pa.int32()))}),
    )
    pids, codes = read_pid2sid(tmp_path / "x.parquet", SPEC)
    assert pids.tolist() == PIDS.tolist() and np.array_equal(codes, CODES)


@pytest.mark.parametrize(
    ("pids", "codes", "match"),
    [
        ([1, 2], [[0, 0], [0]], "row 1 has 1 codes; every SID has 2"),
        ([1], [[0, 4]], "pid 1 has code 4 in layer 1"),
        ([1, 1], [[0, 0], [0, 1]], "names a pid twice"),
    ],
)
def test_bad_tables_are_one_line(tmp_path, pids, codes, match):
    write_table(tmp_path / "x.parquet", pa.table({"pid": pids, "codes": pa.array(codes, pa.list_(pa.int32()))}))
    with pytest.raises(InputError, match=match):
        read_pid2sid(tmp_path / "x.parquet", SPEC)


def written(path, codes=CODES, pids=PIDS):
    write_table(path, pa.table({"pid": pids, "codes": pa.array(codes.tolist(), pa.list_(pa.int32()))}))
    return path


def same(one, other):
    assert one.digest == other.digest and one.n_items == other.n_items
    assert [one.pids_at(row) for row in range(len(one.sids))] == [other.pids_at(row) for row in range(len(other.sids))]
    for a, b in zip(one.levels, other.levels, strict=True):
        assert np.array_equal(a.start, b.start) and np.array_equal(a.code, b.code)
    return True


@pytest.fixture
def mapped(monkeypatch):
    """Every catalogue is large; what other tests have mapped is forgotten."""
    monkeypatch.setattr(catalog, "_MAPPED_FROM", 0)
    monkeypatch.setattr(catalog, "_MAPS", {})


def test_a_large_catalogue_is_mapped_from_a_file_that_is_made_once(tmp_path, mapped, monkeypatch):
    path, popularity = written(tmp_path / "x.parquet"), {12: 5, 10: 1}
    first = ItemIndex.load(path, SPEC, popularity)
    assert same(first, ItemIndex(PIDS, CODES, SPEC, popularity)) and first.sids_within({11}) == [(0, 3)]
    assert sorted(os.listdir(tmp_path)) == [".x.parquet.map", "x.parquet"]
    catalog._MAPS.clear()
    monkeypatch.setattr(catalog, "read_pid2sid", None)  # not read again
    again = ItemIndex.load(path, SPEC)
    assert same(again, ItemIndex(PIDS, CODES, SPEC)) and isinstance(again.keys.base, np.memmap)
    assert ItemIndex.load(path, SPEC).keys is again.keys


def test_a_mapped_file_that_is_old_or_damaged_is_made_anew(tmp_path, mapped):
    path, file = written(tmp_path / "x.parquet"), tmp_path / ".x.parquet.map"
    ItemIndex.load(path, SPEC)
    times = os.stat(path)
    written(path, CODES[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # told by its content, not by its time
    for damage in (None, b"", b"x" * 99, file.read_bytes()[:-40]):
        if damage is not None:
            file.write_bytes(damage)
            catalog._MAPS.clear()
        assert same(ItemIndex.load(path, SPEC), ItemIndex(PIDS, CODES[::-1], SPEC))
        catalog._MAPS.clear()
        assert isinstance(ItemIndex.load(path, SPEC).keys.base, np.memmap)
    other = ItemIndex.load(path, SidSpec((5, 5)))
    assert other.spec.codebook_sizes == (5, 5) and other.keys.tolist() != ItemIndex.load(path, SPEC).keys.tolist()


def test_where_no_file_can_be_written_a_large_catalogue_is_held_in_memory(tmp_path, mapped):
    path = written(tmp_path / "x.parquet")
    (tmp_path / ".x.parquet.map").mkdir()
    assert same(ItemIndex.load(path, SPEC), ItemIndex(PIDS, CODES, SPEC))
    assert sorted(os.listdir(tmp_path)) == [".x.parquet.map", "x.parquet"]


def test_a_mapped_catalogue_is_pickled_as_its_path(tmp_path, mapped):
    path = written(tmp_path / "x.parquet")
    index = ItemIndex.load(path, SPEC, {12: 5})
    sent = pickle.dumps(index)
    assert len(sent) < 600
    here = pickle.loads(sent)
    assert here.keys is index.keys and here.pids_of((1, 2)) == [12, 10, 14]
    catalog._MAPS.clear()  # as in another process
    there = pickle.loads(sent)
    assert same(there, index) and there.keys is not index.keys and pickle.dumps(there) == sent
    catalog._MAPS.clear()
    written(path, CODES[::-1])
    with pytest.raises(InputError, match="has changed since it was opened"):
        pickle.loads(sent)
    plain = ItemIndex(PIDS, CODES, SPEC)
    assert same(pickle.loads(pickle.dumps(plain)), plain)


def test_a_bad_table_of_a_large_catalogue_is_one_line_and_leaves_no_file(tmp_path, mapped):
    path = written(tmp_path / "x.parquet", CODES + 3)
    with pytest.raises(InputError, match="has code 4 in layer 0"):
        ItemIndex.load(path, SPEC)
    assert os.listdir(tmp_path) == ["x.parquet"]


def test_a_table_takes_memory_for_some_rows_at_a_time_and_counts_all(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "_ROWS", 5000, raising=False)
    rng, rows = np.random.default_rng(0), 300_000
    pids, codes = rng.permutation(rows), rng.integers(0, 8192, (rows, 3))
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * 3)
    lists = pa.ListArray.from_arrays(offsets, pa.array(codes.ravel(), pa.int32()))
    write_table(tmp_path / "p.parquet", pa.table({"pid": pids, "codes": lists}))
    usual, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        found = read_pid2sid(tmp_path / "p.parquet", SidSpec((8192,) * 3))
    finally:
        pa.set_memory_pool(usual)
    assert np.array_equal(found[0], pids) and np.array_equal(found[1], codes)
    assert pool.max_memory() < codes.nbytes
    short = pa.array([[1, 2]] * 12_000 + [[3]], pa.list_(pa.int32()))
    write_table(tmp_path / "q.parquet", pa.table({"pid": range(12_001), "codes": short}))
    with pytest.raises(InputError, match="row 12000 has 1 codes; every SID has 2"):
        read_pid2sid(tmp_path / "q.parquet", SPEC)
