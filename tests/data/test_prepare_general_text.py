"""Data sets of the usual shapes become records."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data.prepare_general_text import main, to_record
from onerec.errors import InputError
from onerec.records import check_record, parse_messages, parse_segments
from onerec.render import split_thinking

ROOT = Path(__file__).resolve().parents[2]
ASK, SAY = {"role": "user", "content": "几点了"}, {"role": "assistant", "content": "八点"}


def turns(row, shape="messages"):
    return [(t["role"], t["content"]) for t in parse_messages(to_record(row, shape, "s")["messages"])]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY]},
        {"messages": [ASK, {"role": "assistant", "content": [{"type": "text", "text": "八点"}]}]},
        {"conversations": [{"from": "human", "value": "几点了"}, {"from": "gpt", "value": "八点"}]},
        {"conversation": [{"from": "user", "value": "几点了"}, {"from": "model", "value": "八点"}]},
    ],
)
def test_conversations_of_every_shape_say_the_same(row):
    assert turns(row) == [("user", "几点了"), ("assistant", "八点")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "几点了", "response": "八点"},
        {"question": "几点了", "answer": "八点"},
        {"instruction": "几点了", "input": "", "output": "八点"},
        {"problem": "几点了", "solution": "八点"},
    ],
)
def test_prompts_and_responses_of_every_name(row):
    assert turns(row, "prompt") == [("user", "几点了"), ("assistant", "八点")]


def test_an_input_stands_below_the_instruction_and_a_system_text_first():
    row = {"system": "你是钟", "instruction": "翻译", "input": "eight", "output": "八"}
    assert turns(row, "prompt") == [("system", "你是钟"), ("user", "翻译\neight"), ("assistant", "八")]


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "几点了", "response": "八点", "reasoning": "看钟"}, "prompt"),
        ({"messages": [ASK, {**SAY, "reasoning_content": "看钟"}]}, "messages"),
        ({"messages": [ASK, SAY], "thinking": "看钟"}, "messages"),
        ({"prompt": "几点了", "response": "<think>\n看钟\n</think>\n\n八点", "reasoning": "别的"}, "prompt"),
    ],
)
def test_reasoning_goes_into_a_think_block_once(row, shape):
    assert split_thinking(turns(row, shape)[-1][1]) == ("看钟", "八点")


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))


def test_a_local_folder_becomes_a_file_of_valid_records_with_stable_uuids(tmp_path, capsys):
    write_lines(tmp_path / "in" / "a.jsonl", [{"text": f"文{i}"} for i in range(5)])
    write_lines(tmp_path / "in" / "b.jsonl", [{"text": "文0"}, {"text": "  "}])
    argv = [
        "--dataset",
        str(tmp_path / "in"),
        "--source",
        "wiki",
        "--output_dir",
        str(tmp_path / "out"),
        "--max_bad_ratio",
        "0.5",
    ]
    main(argv)
    assert "5 records in" in (out := capsys.readouterr().out) and "1 (stands twice)" in out and "1 (no text)" in out
    path = tmp_path / "out" / "pretrain" / "wiki.parquet"
    rows = pq.read_table(path).to_pylist()
    assert [parse_segments(row["segments"]) for row in rows] == [f"文{i}" for i in range(5)]
    assert all(check_record(row) is None and row["source"] == "wiki" for row in rows)
    before = path.read_bytes()
    main(argv)
    assert path.read_bytes() == before


def test_chats_go_to_sft_and_the_number_of_rows_can_be_bounded(tmp_path):
    write_lines(tmp_path / "chat.jsonl", [{"question": f"{i}", "answer": "答"} for i in range(9)])
    main(["--dataset", str(tmp_path / "chat.jsonl"), "--output_dir", str(tmp_path / "out"), "--max_rows", "4"])
    assert pq.read_table(tmp_path / "out" / "sft" / "chat.parquet").num_rows == 4


def test_records_pass_through(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"text": "文"}])
    main(["--dataset", str(tmp_path / "a.jsonl"), "--output_dir", str(tmp_path / "one")])
    made = tmp_path / "one" / "pretrain" / "a.parquet"
    main(["--dataset", str(made), "--output_dir", str(tmp_path / "two")])
    assert pq.read_table(tmp_path / "two" / "pretrain" / "a.parquet").equals(pq.read_table(made))


@pytest.mark.parametrize(
    ("rows", "more", "match"),
    [
        ([{"a": 1}], [], "has the columns a; say --format"),
        ([{"text": ""}], [], "gives no record"),
        ([{"text": "a"}, {"text": ""}], [], "1 of 2 rows are bad"),
        ([{"messages": [ASK]}], [], r"gives no record .*1 \(no answer\)"),
        ([{"messages": [{"role": "robot", "content": "a"}]}], [], "a turn without role or text"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_no_file(tmp_path, rows, more, match):
    write_lines(tmp_path / "in.jsonl", rows)
    with pytest.raises(InputError, match=match):
        main(["--dataset", str(tmp_path / "in.jsonl"), "--output_dir", str(tmp_path / "out"), *more])
    assert not list(tmp_path.glob("out/*/*.parquet"))


def test_files_of_two_kinds_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\n")
    write_lines(tmp_path / "b.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match="several kinds"):
        main(["--dataset", str(tmp_path), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_the_lists_of_public_corpora_can_be_read(name, tmp_path):
    from data.prepare_general_text import FORMATS, read_list

    rows = read_list(ROOT / "data" / "general_text" / f"{name}.csv")
    assert len(rows) > 3 and all(row["format"] in FORMATS and "/" in row["dataset"] for row in rows)
    assert all(row["license"] and row["named_by"] for row in rows)


def test_a_hub_name_without_a_network_is_one_line(tmp_path):
    code = "import sys; from data.prepare_general_text import main; from onerec.cli import cli; cli(main)()"
    argv = ["--dataset", "owner/name", "--output_dir", str(tmp_path)]
    env = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: owner/name: cannot be loaded (")
