"""The item index: one SID may name several items, by popularity; its trie walks every SID once."""

import numpy as np
import pyarrow as pa
import pytest

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
