"""However a stranger's column is stored: the exact values come out, or `InputError`, or a null that is counted."""

from __future__ import annotations

import datetime
import json
import math
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onerec.catalog import read_pid2sid
from onerec.errors import InputError
from onerec.parquet import Kind, list_parquet, matching, read_table, whole_number
from onerec.records import check_record, record_batches, user_id
from onerec.sid import SidSpec
from tests.columns import PROPERTY, integer_columns

OTHERS = [
    (pa.bool_(), st.booleans()),
    (pa.date32(), st.dates(datetime.date(1970, 1, 1))),
    (pa.struct([("a", pa.int64())]), st.fixed_dictionaries({"a": st.integers(0, 9)})),
    (pa.map_(pa.string(), pa.int64()), st.just([("a", 1)])),
    (pa.list_(pa.list_(pa.int64())), st.just([[1]])),
]
TEXT_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view()]
LISTS = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 3)]


@given(column=integer_columns())
@PROPERTY
def test_whole_numbers_come_out_exact_or_are_refused(tmp_path_factory, column):
    array, wanted, wrong = column
    path = tmp_path_factory.getbasetemp() / "ints.parquet"
    pq.write_table(pa.table({"x": array}), path)
    if any(wrong):
        with pytest.raises(InputError, match=f"column x of row {wrong.index(True)} is"):
            read_table(path, {"x": Kind.INT})
    else:
        assert read_table(path, {"x": Kind.INT})["x"].to_pylist() == wanted
    assert read_table(path, {"x": Kind.INT}, strict=False)["x"].to_pylist() == wanted


@given(
    column=integer_columns(),
    sort=st.sampled_from(LISTS),
    nulls=st.lists(st.booleans(), min_size=4, max_size=4),
)
@PROPERTY
def test_lists_of_numbers_of_every_sort_come_out_exact_or_are_refused(tmp_path_factory, column, sort, nulls):
    array, wanted, wrong = column
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    rows = [None if null else [(i + j) % len(wanted) for j in range(3)] for i, null in enumerate(nulls)]
    values = array.to_pylist()
    lists = pa.array([row and [values[i] for i in row] for row in rows], sort(array.type))
    path = tmp_path_factory.getbasetemp() / "lists.parquet"
    try:
        pq.write_table(pa.table({"x": lists}), path)
    except pa.ArrowNotImplementedError:
        return  # nobody can have such a file
    exact_rows = [row and (None if any(wrong[i] for i in row) else [wanted[i] for i in row]) for row in rows]
    assert read_table(path, {"x": Kind.INTS}, strict=False)["x"].to_pylist() == exact_rows
    if any(row and any(wrong[i] for i in row) for row in rows):
        with pytest.raises(InputError, match="column x of row"):
            read_table(path, {"x": Kind.INTS})


@given(
    values=st.lists(st.none() | st.text(max_size=5) | st.binary(max_size=5), min_size=1, max_size=6),
    kind=st.sampled_from([*TEXT_TYPES, *BYTES]),
)
@PROPERTY
def test_text_comes_out_as_it_was_or_is_no_utf8(tmp_path_factory, values, kind):
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    array = pa.array(raw, pa.binary())
    if kind not in BYTES:  # a file may call anything text
        array = pa.Array.from_buffers(pa.string(), len(array), array.buffers())
        array = (
            array.dictionary_encode()
            if pa.types.is_dictionary(kind)
            else array
            if kind == pa.string_view()
            else array.cast(kind, safe=False)
        )
    else:
        array = array.cast(kind)
    path = tmp_path_factory.getbasetemp() / "texts.parquet"
    pq.write_table(pa.table({"x": array}), path)

    def decoded(value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode()
        except UnicodeDecodeError:
            return None

    wanted = [decoded(value) for value in raw]
    assert read_table(path, {"x": Kind.TEXT}, strict=False)["x"].to_pylist() == wanted
    if any(value is not None and text is None for value, text in zip(raw, wanted, strict=True)):
        with pytest.raises(InputError, match=r"column x of row \d+ is"):
            read_table(path, {"x": Kind.TEXT})


@pytest.mark.parametrize("kind", [Kind.INT, Kind.TEXT, Kind.INTS, Kind.FLOATS, Kind.UUID])
@pytest.mark.parametrize(("stored_as", "values"), OTHERS, ids=lambda value: str(value)[:20])
def test_a_type_that_cannot_be_meant_is_refused_by_name(tmp_path, kind, stored_as, values):
    example = [True] if stored_as == pa.bool_() else None
    array = pa.array(example, stored_as) if example else pa.nulls(2, stored_as)
    pq.write_table(pa.table({"x": array}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="column x is"):
        read_table(tmp_path / "x.parquet", {"x": kind})


SPEC = SidSpec((16, 16))


@given(column=integer_columns(), codes=integer_columns())
@PROPERTY
def test_an_item_table_gives_the_exact_pids_and_codes_or_is_refused(tmp_path_factory, column, codes):
    pids, wanted, wrong = column
    drawn, numbers, odd = codes
    path = tmp_path_factory.getbasetemp() / "pid2sid.parquet"
    values = drawn.to_pylist()
    rows = [[i % len(values), (i + 1) % len(values)] for i in range(len(pids))]
    kind = drawn.type.value_type if pa.types.is_dictionary(drawn.type) else drawn.type
    table = pa.table({"pid": pids, "codes": pa.array([[values[i] for i in row] for row in rows], pa.list_(kind))})
    pq.write_table(table, path)
    used = {i for row in rows for i in row}
    fits = all(not odd[i] and numbers[i] is not None and 0 <= numbers[i] < 16 for i in used)
    if any(wrong) or None in wanted or not fits or len(set(wanted)) < len(wanted):
        with pytest.raises(InputError):
            read_pid2sid(path, SPEC)
    else:
        found, read = read_pid2sid(path, SPEC)
        assert found.tolist() == wanted and read.tolist() == [[numbers[i] for i in row] for row in rows]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
TURN = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "usr", ""]) | st.none(),
        "content": st.none() | st.text(max_size=6),
    }
)


@given(
    metadata=JSON_VALUES | st.dictionaries(st.sampled_from(["uid", "a"]), JSON_VALUES),
    turns=st.lists(TURN, max_size=3) | JSON_VALUES,
)
@PROPERTY
def test_a_record_is_good_or_has_a_reason_whatever_its_json(metadata, turns):
    row = {"uuid": str(uuid.UUID(int=5)), "source": "x", "segments": None}
    reason = check_record({**row, "metadata": json.dumps(metadata), "messages": json.dumps(turns)})
    if reason is None:
        assert turns and all(turn["role"] in ("user", "assistant", "system") for turn in turns)
        assert metadata.get("uid") is None or user_id(metadata["uid"]) is not None


@given(turns=st.lists(st.lists(TURN, min_size=1, max_size=3), min_size=1, max_size=4), users=integer_columns())
@PROPERTY
def test_records_of_structs_are_those_of_json(tmp_path_factory, turns, users):
    n = len(turns)
    path = tmp_path_factory.getbasetemp() / "records.parquet"
    uids = [users[1][i % len(users[1])] for i in range(n)]
    ids = [uuid.UUID(int=i + 2**80) for i in range(n)]
    base = {"source": pa.array(["s"] * n).dictionary_encode(), "segments": pa.nulls(n)}
    structs = {
        "uuid": pa.array([i.bytes for i in ids], pa.binary(16)),
        "metadata": [{"uid": u} for u in uids],
        "messages": turns,
        **base,
    }
    as_json = {
        "uuid": list(map(str, ids)),
        "metadata": [json.dumps({"uid": u}) for u in uids],
        "messages": list(map(json.dumps, turns)),
        **base,
    }
    found = []
    for columns in (structs, as_json):
        pq.write_table(pa.table(columns), path)
        rows = [row for batch in record_batches(path) for row in batch.to_pylist()]
        found.append([(row["uuid"], check_record(row)) for row in rows])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("value", "user"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        ("u3", "u3"),
        ("03", 3),
        (" 3 ", 3),
        ("", None),
        (" ", None),
        (None, None),
        (2**63 - 1, 2**63 - 1),
        ("-7", -7),
    ],
)
def test_a_user_is_the_same_however_it_is_written(value, user):
    assert user_id(value) == user


@pytest.mark.parametrize("value", [3.5, math.nan, math.inf, 2.0**53, 2**63, True, [], {}])
def test_what_is_no_user_is_refused(value):
    with pytest.raises(ValueError):
        user_id(value)
    with pytest.raises(ValueError):
        whole_number(value)


def test_brackets_in_a_path_are_a_name_where_it_is_there_and_a_pattern_elsewhere(tmp_path):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    for name in ("x.parquet", "y[2].parquet", "_hidden.parquet", ".crc.parquet"):
        pq.write_table(pa.table({"x": [1]}), folder / name)
    assert list_parquet(folder / "y[2].parquet") == [folder / "y[2].parquet"]
    assert list_parquet(folder) == [folder / "x.parquet", folder / "y[2].parquet"]
    assert matching(folder / "[x]*.parquet") == [folder / "x.parquet"]
