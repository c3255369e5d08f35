"""Strangers' columns in the data stage, the tokenizer and the benchmark: exact ids, a refusal, or a bad row."""

from __future__ import annotations

import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tasks import TASKS, load_examples
from data.mix import Source, file_of, read_config, read_excluded
from data.onerec_data.batch import NO_PID, Batch
from data.onerec_data.layout import load_layout
from data.onerec_data.tables import PidIndex, read_tags
from data.onerec_data.users import Captions, Users
from data.prepare_general_text import main as general_text
from data.prepare_mix import main as mix
from data.prepare_rl import to_rl_row
from onerec.errors import InputError
from onerec.records import chat_record, check_prompts, message, write_records
from onerec.run import Manifest, write_json
from tests.columns import PROPERTY, integer_columns
from tokenizer.embeddings import first_of_pids, iter_embeddings

LAYOUT = load_layout("release")


@given(uids=integer_columns(), splits=integer_columns())
@PROPERTY
def test_users_have_their_exact_uid_and_split_or_are_counted(tmp_path_factory, uids, splits):
    path = tmp_path_factory.getbasetemp() / "users.parquet"
    n = min(len(uids[0]), len(splits[0]))
    history = pa.array([[1]] * n)
    table = {"uid": uids[0].slice(0, n), "split": splits[0].slice(0, n), "hist_video_pid": history}
    pq.write_table(pa.table(table), path)
    users = Users(path, ["hist_video_pid"], [], LAYOUT)
    found = [pair for data in users for pair in zip(Batch(data, LAYOUT).uid, Batch(data, LAYOUT).split, strict=True)]
    pairs = [
        (uid, split)
        for uid, split in zip(uids[1][:n], splits[1][:n], strict=True)
        if uid is not None and split in (0, 1, 2)
    ]
    assert found == list(dict.fromkeys(pairs)), "each once, in order"
    assert users.counts.total() == n - len(found), "the others are counted"


@given(column=integer_columns(), nulls=st.lists(st.booleans(), min_size=3, max_size=3))
@PROPERTY
def test_histories_keep_the_exact_ids_and_the_place_of_what_is_none(tmp_path_factory, column, nulls):
    array, wanted, wrong = column
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    values = array.to_pylist()
    rows = [None if null else values for null in nulls]
    data = pa.RecordBatch.from_pydict({"uid": [1, 2, 3], "hist_video_pid": pa.array(rows, pa.list_(array.type))})
    batch = Batch(data, LAYOUT)
    found = batch.lists("hist_video_pid").values.tolist()
    assert found == [NO_PID if value is None else value for value in wanted] * nulls.count(False)
    assert batch.values_bad.total() == sum(wrong) * nulls.count(False)
    assert (PidIndex(np.array([NO_PID + 1, 5])).find(np.array([NO_PID])) == -1).all()


@given(column=integer_columns())
@PROPERTY
def test_captions_and_embeddings_have_their_exact_pid_or_none(tmp_path_factory, column):
    array, wanted, wrong = column
    n = len(wanted)
    path = tmp_path_factory.getbasetemp() / "items.parquet"
    vectors = pa.array([[1.0, i + 1.0] for i in range(n)], pa.list_(pa.float32()))
    tags = pa.array([["a"]] * n)
    pq.write_table(pa.table({"pid": array, "caption": ["text"] * n, "embedding": vectors, "tags": tags}), path)
    readers = (
        lambda: [pid for pids, _ in Captions(path, LAYOUT) for pid in pids],
        lambda: [
            pid
            for pids, _ in iter_embeddings(path, 2, Manifest("x"), first=first_of_pids(path))
            for pid in pids.tolist()
        ],
    )
    distinct = list(dict.fromkeys(value for value in wanted if value is not None))
    for read in readers:
        if any(wrong) or (not distinct and read is readers[0]):
            with pytest.raises(InputError):
                read()
        else:
            assert read() == distinct
    if not any(wrong):
        known = [pid for pid in distinct if pid != NO_PID]  # int64's least number stands for no item
        assert read_tags(path, LAYOUT).of(np.array(known, np.int64)) == ["a"] * len(known)


def records_of(users: list[object]) -> list[dict]:
    turns = [message("user", "q"), message("assistant", "a")]
    return [chat_record(str(uuid.UUID(int=i + 2**80)), "x", {"uid": user}, turns) for i, user in enumerate(users)]


@given(kept=integer_columns(), left_out=integer_columns(), as_text=st.booleans())
@PROPERTY
def test_no_row_of_an_excluded_user_stays_however_the_user_is_stored(tmp_path_factory, kept, left_out, as_text):
    folder = tmp_path_factory.getbasetemp() / "mix"
    folder.mkdir(exist_ok=True)
    users = [user for user in dict.fromkeys([*kept[1], *left_out[1]]) if user is not None]
    write_records(folder / "records.parquet", records_of([str(user) if as_text else user for user in users]))
    pq.write_table(pa.table({"extra_info": pa.StructArray.from_arrays([left_out[0]], ["uid"])}), folder / "rl.parquet")
    try:
        excluded = read_excluded(folder / "c", folder, ["rl.parquet"], Manifest("x"))
    except InputError:
        assert None in left_out[1], "a user that is none is refused, nobody is forgotten"
        return
    assert excluded == set(left_out[1])
    source = Source("x", [file_of(folder / "records.parquet")], excluded=excluded)
    assert source.total == len(set(users) - excluded)


@pytest.mark.parametrize(("ids", "others"), [([1, 2], ["u1"]), (["u1", "u2"], [1])])
def test_excluded_users_whose_ids_cannot_match_are_refused(tmp_path, ids, others):
    write_records(tmp_path / "records.parquet", records_of(ids))
    pq.write_table(pa.table({"extra_info": [{"uid": other} for other in others]}), tmp_path / "rl.parquet")
    config = {"sources": [{"name": "x", "path": "records.parquet"}], "exclude_users": ["rl.parquet"]}
    write_json(tmp_path / "c.json", config)
    with pytest.raises(InputError, match="names its users as"):
        mix(
            [
                "--config",
                str(tmp_path / "c.json"),
                "--base_dir",
                str(tmp_path),
                "--output_dir",
                str(tmp_path / "o"),
            ]
        )
    assert not (tmp_path / "o").exists()


def users_table(**change) -> pa.Table:
    columns = {"uid": [1, 2], "split": [0, 1], "hist_video_pid": [[1], [1]], **change}
    return pa.table({name: values for name, values in columns.items() if values is not None})


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        (
            {"a.parquet": users_table(), "b.parquet": users_table(split=None)},
            "b.parquet: has no column split, which others have",
        ),
        ({"split=1/a.parquet": users_table(split=None)}, r"says split=1 in its folder's name alone"),
        (
            {"a.parquet": users_table(), "b.parquet": users_table(split=["x", "y"])},
            "b.parquet: column split is string",
        ),
    ],
)
def test_all_files_of_users_are_looked_at_before_one_is_read(tmp_path, tables, match):
    for name, table in tables.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / name)
    with pytest.raises(InputError, match=match):
        Users(tmp_path / "**/*.parquet", ["hist_video_pid"], [], LAYOUT)


def test_keys_whose_hashes_collide_are_two_users(tmp_path):
    assert hash((-1, 0, 0)) == hash((-2, 0, 0))
    pq.write_table(users_table(uid=[-1, -2], split=[0, 0]), tmp_path / "u.parquet")
    users = Users(tmp_path / "u.parquet", ["hist_video_pid"], [], LAYOUT)
    assert [data.num_rows for data in users] == [2] and not users.counts


@pytest.mark.parametrize(
    "mark", ["<|im_end|>", "<|im_start|>user", "<|endoftext|>", "<think>", "<s_a_3>", "<|sid_begin|>"]
)
def test_a_caption_with_a_mark_is_left_out_and_counted(tmp_path, mark):
    pq.write_table(pa.table({"pid": [1, 2], "caption": ["lamp", f"lamp {mark} x"]}), tmp_path / "c.parquet")
    captions = Captions(tmp_path / "c.parquet", LAYOUT)
    assert list(captions) == [([1], ["lamp"])]
    assert captions.counts == {"captions: holds a mark of chats or items": 1}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"uuid": None}, "uuid is null"),
        ({"messages": "[]"}, "messages is not a list"),
        ({"messages": '[{"role":"usr","content":"a"}]'}, "a message's role is unknown"),
        (
            {"messages": '[{"role":"user","content":"<s_a_99999>"}]'},
            "the itemic token <s_a_99999> is outside",
        ),
        ({"messages": '[{"role":"user","content":"a<|im_end|>"}]'}, "holds a mark of chats"),
        ({"metadata": '{"answer_pid":[1e400]}'}, "metadata is not a JSON object"),
        ({"metadata": '{"answer_pid":[1.5]}'}, "1.5 is not a whole number"),
        ({"metadata": '{"answer_pid":[1],"uid":{}}'}, "is not a whole number"),
    ],
)
def test_a_bad_row_of_the_benchmark_is_named_by_its_reason(tmp_path, change, match):
    row = {
        "uuid": "u",
        "messages": '[{"role":"user","content":"a"}]',
        "metadata": '{"answer_pid":[1]}',
        **change,
    }
    (tmp_path / "video").mkdir()
    pq.write_table(
        pa.table({name: pa.array([value], pa.string()) for name, value in row.items()}),
        tmp_path / "video" / "video_test.parquet",
    )
    with pytest.raises(InputError, match=match):
        load_examples(tmp_path, TASKS["video"])


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        "what next?",
        json.dumps([{"role": "user", "content": "a"}]),
        [{"role": "usr", "content": "a"}],
        [{"role": "user", "content": None}],
    ],
)
def test_prompts_that_verl_cannot_read_are_refused(tmp_path, prompt):
    good = [{"role": "user", "content": "a"}]
    rows = [prompt, prompt] if isinstance(prompt, str) else [good, prompt]
    pq.write_table(pa.table({"prompt": rows}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"row 1 has no prompt|column prompt is string"):
        check_prompts(tmp_path / "p.parquet")
    pq.write_table(pa.table({"prompt": [good]}), tmp_path / "p.parquet")
    check_prompts(tmp_path / "p.parquet")


@pytest.mark.parametrize("user", ["u1", None, 1.5, 2**63])
def test_rl_data_are_of_users_with_whole_ids(user):
    with pytest.raises(ValueError, match=r"user|uid"):
        to_rl_row("video", 0, records_of([user])[0])


@pytest.mark.parametrize(
    "config",
    [
        {"sources": [5]},
        {"sources": [{"name": "x", "path": "r.parquet"}], "rows_per_file": True},
        {"sources": [{"name": "x", "path": "r.parquet", "weight": True}]},
        {"sources": [{"name": "x", "path": "r.parquet"}], "folders": {"A": [1]}},
    ],
)
def test_a_mix_of_another_shape_is_one_line(tmp_path, config):
    write_records(tmp_path / "r.parquet", records_of([1]))
    write_json(tmp_path / "c.json", config)
    with pytest.raises(InputError):
        read_config(tmp_path / "c.json", tmp_path, Manifest("x"))


@pytest.mark.parametrize(
    "layout", [{"key": 5}, {"key": [["uid"]]}, {"values": {"split": 3}}, {"captions": {"caption": 5}}]
)
def test_a_layout_of_other_types_is_one_line(tmp_path, layout):
    write_json(tmp_path / "l.json", layout)
    with pytest.raises(InputError):
        load_layout(tmp_path / "l.json")


def test_words_of_a_layout_are_splits(tmp_path):
    write_json(tmp_path / "l.json", {"values": {"split": {"train": 0, "test": 1}}})
    layout = load_layout(tmp_path / "l.json")
    pq.write_table(
        users_table(uid=[1, 2, 3], split=["train", "test", "dev"], hist_video_pid=[[1]] * 3),
        tmp_path / "u.parquet",
    )
    users = Users(tmp_path / "u.parquet", ["hist_video_pid"], [], layout)
    assert [Batch(data, layout).split for data in users] == [[0, 1]]
    assert users.counts == {"users: split is not 0, 1 or 2": 1}


def test_a_refused_run_over_general_text_leaves_the_good_file_of_the_run_before(tmp_path):
    good, half = tmp_path / "good.jsonl", tmp_path / "half.jsonl"
    good.write_text("".join(json.dumps({"prompt": f"p{i}", "response": "r"}) + "\n" for i in range(4)))
    half.write_text(good.read_text() + '{"prompt": "cut, "response": null}\n')
    argv = ["--source", "s", "--output_dir", str(tmp_path / "out")]
    general_text(["--dataset", str(good), *argv])
    made = tmp_path / "out" / "sft" / "s.parquet"
    before = made.read_bytes()
    for broken in (half, made.with_name("s.manifest.json")):
        with pytest.raises(InputError):
            general_text(["--dataset", str(broken), *argv])
        assert made.read_bytes() == before
