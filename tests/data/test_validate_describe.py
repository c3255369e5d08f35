"""What validate.py finds and what describe.py says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from data.describe import EveryKth, Histogram
from data.describe import main as describe
from data.prepare_rl import SCHEMA as RL_SCHEMA
from data.validate import main as validate
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import chat_record, message, record_uuid, text_record, write_records
from onerec.sid import SidSpec

SPEC = SidSpec((4, 4, 4))
SID = SPEC.text([1, 2, 3])


def chat(i, question="问", answer="答", **change):
    return chat_record(record_uuid(i), "chat", {}, [message("user", question), message("assistant", answer)]) | change


@pytest.fixture
def check(tmp_path):
    SPEC.save(tmp_path)

    def run(*records, spec=True):
        write_records(tmp_path / "in.parquet", records)
        validate([str(tmp_path / "in.parquet"), *(["--sid_spec", str(tmp_path)] if spec else [])])

    return run


def test_whole_records_pass(check, capsys):
    check(chat(1, SID * 2), text_record(record_uuid(2), "text", {}, [f"看了{SID}"]))
    assert capsys.readouterr().out == "valid: 2 rows\n"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chat(2, uuid="x"), "uuid is not valid"),
        (chat(1), "uuid stands twice"),
        (chat(2, source=" "), "source is empty"),
        (chat(2, metadata="[]"), "metadata is not a JSON object"),
        (chat(2, segments="[]"), "neither or both of segments and messages"),
        (chat(2, messages='[{"role":"robot","content":"a"}]'), "a message's role is unknown"),
        (
            chat(2, messages='[{"role":"user","content":[{"type":"image"}]}]'),
            "a message's content has a part that is not text",
        ),
        (chat(2, SID.replace("<s_a_1>", "<s_a_4>")), "a code outside its codebook"),
        (chat(2, SID.replace("<s_b_2>", "")), "a SID that is not whole"),
        (chat(2, "<s_a_1>"), "a SID that is not whole"),
        (chat(2, "<|sid_begin|>"), "a SID that is not whole"),
    ],
)
def test_every_rule_has_its_reason_and_the_row_is_named(check, capsys, bad, reason):
    with pytest.raises(InputError, match=f"1 of 2 rows break the format: 1 .{reason}"):
        check(chat(1, SID), bad)
    assert f"row 1 (uuid {bad['uuid'] if reason != 'uuid stands twice' else None}): {reason}" in capsys.readouterr().out


def test_without_a_specification_any_code_is_right_but_half_a_sid_is_not(check):
    check(chat(1, SID.replace("<s_a_1>", "<s_a_9999>")), spec=False)
    with pytest.raises(InputError, match="not whole"):
        check(chat(1, "<s_a_1><s_b_1>"), spec=False)


def test_a_double_across_files_names_the_second_file(tmp_path, capsys):
    for name in ("a", "b"):
        write_records(tmp_path / f"{name}.parquet", [chat(name), chat(1)])
    with pytest.raises(InputError, match="1 of 4 rows"):
        validate([str(tmp_path)])
    assert f"{tmp_path}/b.parquet: row 1" in capsys.readouterr().out


def rl_row(uid, truth=SID, role="user"):
    return {
        "data_source": "onerec/video",
        "prompt": [{"role": role, "content": "问"}],
        "ability": "recommendation",
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"uid": uid, "task": "video", "index": 0, "uuid": record_uuid(uid)},
    }


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (rl_row(1), None),
        (rl_row(2), "a user in train and test"),
        (rl_row(1, truth=""), "ground truth is empty"),
        (rl_row(1, truth="<s_a_1>"), "a SID that is not whole"),
        (rl_row(1, role="assistant"), "prompt is not a conversation"),
        (rl_row(None), "extra_info names no user"),
    ],
)
def test_rl_data_has_rules_of_its_own(tmp_path, train, reason):
    write_table(tmp_path / "train.parquet", pa.Table.from_pylist([train], schema=RL_SCHEMA))
    write_table(tmp_path / "test.parquet", pa.Table.from_pylist([rl_row(2)], schema=RL_SCHEMA))
    if reason is None:
        return validate([str(tmp_path)])
    with pytest.raises(InputError, match=reason):
        validate([str(tmp_path)])


def test_a_table_of_something_else_is_one_line(tmp_path):
    write_table(tmp_path / "x.parquet", pa.table({"pid": [1]}))
    with pytest.raises(InputError, match="has the columns pid; records"):
        validate([str(tmp_path)])


def test_a_histogram_is_exact():
    histogram = Histogram()
    histogram.add([1, 2, 2])
    histogram.add([1000])
    assert (histogram.n, histogram.total, histogram.most(), histogram.quantile(0.5)) == (4, 1005, 1000, 2)
    bounds, counts = histogram.bins(4)
    assert sum(counts) == 4 and len(bounds) == len(counts) + 1


@pytest.mark.parametrize("n", [5, 20, 999, 12345])
def test_a_systematic_sample_spreads_over_the_stream(n):
    sample = EveryKth(10)
    for i in range(n):
        sample.offer(i)
    steps = {b - a for a, b in zip(sample.kept, sample.kept[1:], strict=False)}
    assert len(steps) == 1 and min(n, 10) <= len(sample.kept) < 20


def test_the_description_counts_what_is_there(tmp_path, capsys):
    other = SPEC.text([0, 0, 0])
    rows = [chat(i, SID * (i + 1), other) for i in range(3)]
    write_records(tmp_path / "in.parquet", [*rows, chat(9, SID, f"<think>\n因为\n</think>\n\n{other}")])
    codes = pa.array([[1, 2, 3], [0, 0, 0], [3, 3, 3], [2, 2, 2]], pa.list_(pa.int32()))
    write_table(tmp_path / "tables" / "pid2sid.parquet", pa.table({"pid": [1, 2, 3, 4], "codes": codes}))
    SPEC.save(tmp_path / "tables")
    (tmp_path / "manifest.json").write_text('{"dropped": {"no target": 5}}')
    table = str(tmp_path / "tables" / "pid2sid.parquet")
    describe([str(tmp_path / "in.parquet"), "--pid2sid", table, "--output_dir", str(tmp_path / "out")])
    source = json.loads((tmp_path / "out" / "describe.json").read_text())
    (facts,) = source["sources"]
    assert facts["rows"] == 4 and facts["sids_per_row"] == 7 / 4 and facts["sids_most"] == 3
    assert facts["distinct_sids"] == 2 and facts["coverage"] == 0.5 and facts["thought_share"] == 0.25
    assert source["dropped"] == {"no target": 5}
    html = (tmp_path / "out" / "describe.html").read_text()
    assert "<svg" in html and "5: no target" in html and "http" not in html
    assert "4 rows" in capsys.readouterr().out


def test_tokens_are_counted_with_the_checkpoints_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("data.describe.SAMPLE", 2)
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    records = [text_record(record_uuid(i), "text", {}, ["one two three"]) for i in range(5)]
    write_records(tmp_path / "in.parquet", records)
    argv = [str(tmp_path / "in.parquet"), "--tokenizer", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    describe(argv)
    (facts,) = json.loads((tmp_path / "out" / "describe.json").read_text())["sources"]
    assert facts["tokens"] == 15 and facts["tokens_extrapolated"] and facts["tokens_most"] == 3
    with pytest.raises(InputError, match="no such file"):
        describe([argv[0], "--tokenizer", str(tmp_path / "none")])


def test_the_prepare_scripts_end_with_the_verdict(tmp_path):
    root = Path(__file__).resolve().parents[2]
    write_records(tmp_path / "in.parquet", [chat(i, SID) for i in range(3)])
    (tmp_path / "config.json").write_text('{"sources": [{"name": "a", "path": "in.parquet"}]}')
    SPEC.save(tmp_path / "output" / "benchmark_data")
    env = {
        **os.environ,
        "PYTHON": sys.executable,
        "BASE_DIR": str(tmp_path),
        "CONFIG": str(tmp_path / "config.json"),
    }
    done = subprocess.run(
        ["bash", "data/prepare_sft.sh"], cwd=root, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("valid: 3 rows\n")
    write_records(tmp_path / "in.parquet", [chat(i, SID.replace("_1>", "_7>")) for i in range(3)])
    done = subprocess.run(["bash", "data/prepare_sft.sh"], cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "a code outside its codebook" in done.stderr
