"""The record format: what passes, what does not and why, and the file list."""

import pyarrow.parquet as pq
import pytest

from onerec.errors import InputError
from onerec.records import (
    SCHEMA,
    chat_record,
    check_record,
    message,
    parse_messages,
    parse_segments,
    read_file_list,
    record_uuid,
    text_record,
    write_records,
)

CHAT = chat_record(
    record_uuid("video", 1),
    "video_rec",
    {"uid": 1},
    [message("user", "看什么？"), message("assistant", "这个")],
)
TEXT = text_record(record_uuid("text", 1), "wiki", {}, ["第一段", "第二段"])


def test_good_records_pass_and_read_back():
    assert check_record(CHAT) is None and check_record(TEXT) is None
    assert parse_messages(CHAT["messages"]) == [
        {"role": "user", "content": "看什么？"},
        {"role": "assistant", "content": "这个"},
    ]
    assert parse_segments(TEXT["segments"]) == "第一段第二段"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uuid": "abc"}, "uuid is not valid"),
        ({"uuid": None}, "uuid is not valid"),
        ({"source": " "}, "source is empty"),
        ({"metadata": "[]"}, "metadata is not a JSON object"),
        ({"metadata": "{"}, "metadata is not a JSON object"),
        ({"messages": None}, "neither or both of segments and messages"),
        ({"segments": "[]"}, "neither or both of segments and messages"),
        ({"messages": "{}"}, "messages is not a list"),
        ({"messages": '[{"role":"robot","content":"a"}]'}, "a message's role is unknown"),
        (
            {"messages": '[{"role":"user","content":[{"type":"image"}]}]'},
            "a message's content has a part that is not text",
        ),
        ({"messages": '[{"role":"user","content":[]}]'}, "a message's content is not a list of parts"),
    ],
)
def test_a_broken_record_is_named_by_its_reason(change, reason):
    assert check_record({**CHAT, **change}) == reason


def test_empty_segments_are_refused():
    assert check_record({**TEXT, "segments": '[{"type":"text","text":""}]'}) == "segments is empty"


def test_the_same_row_has_the_same_uuid():
    assert record_uuid("video", 1) == record_uuid("video", "1") != record_uuid("video1")


def test_the_file_has_the_schema_and_the_same_bytes_again(tmp_path):
    for name in ("a", "b"):
        assert write_records(tmp_path / name, iter([CHAT, TEXT]), rows_per_batch=1) == 2
    assert pq.read_schema(tmp_path / "a").equals(SCHEMA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_file_list_names_its_shards_and_misses_none(tmp_path):
    (tmp_path / "file_list.json").write_text('["part-00000-of-00001.parquet"]')
    with pytest.raises(InputError, match="is missing, but"):
        read_file_list(tmp_path)
    write_records(tmp_path / "part-00000-of-00001.parquet", [CHAT])
    assert read_file_list(tmp_path) == [tmp_path / "part-00000-of-00001.parquet"]
