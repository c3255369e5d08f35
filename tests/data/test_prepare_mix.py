"""Mixing, distillation prompts and RL data: what comes out, in which order, and what bad input gets."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.prepare_distillation import main as distill
from data.prepare_distillation import repair
from data.prepare_mix import main as mix
from data.prepare_rl import main as prepare_rl
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import chat_record, message, read_file_list, record_uuid, text_record, write_records


def chat(i, source="chat", uid=None):
    turns = [message("user", f"问{i}"), message("assistant", f"答{i}")]
    return chat_record(record_uuid(source, i), source, {"uid": i if uid is None else uid}, turns)


@pytest.fixture
def world(tmp_path):
    write_records(tmp_path / "chat.parquet", [chat(i) for i in range(25)])
    write_records(
        tmp_path / "text.parquet",
        [text_record(record_uuid("t", i), "text", {}, [f"文{i}"]) for i in range(10)],
    )

    def config(*sources, **more):
        (tmp_path / "config.json").write_text(
            json.dumps({"sources": list(sources), "rows_per_file": 10, **more})
        )

    config({"name": "chat", "path": "chat.parquet"}, {"name": "text", "path": "text.parquet"})
    return tmp_path, config


def run(folder, *more):
    out = folder / "mixed"
    mix(["--config", str(folder / "config.json"), "--base_dir", str(folder), "--output_dir", str(out), *more])
    return [row for path in read_file_list(out) for row in pq.read_table(path).to_pylist()]


def test_the_mix_holds_every_row_once_shuffled_in_shards(world):
    folder, _ = world
    rows = run(folder)
    assert sorted(p.name for p in (folder / "mixed").glob("*.parquet")) == [
        f"part-0000{i}-of-00004.parquet" for i in range(4)
    ]
    assert len({row["uuid"] for row in rows}) == 35
    sources = [row["source"] for row in rows]
    assert sources != sorted(sources), "sources are mixed, not one after the other"


def test_the_same_seed_gives_the_same_bytes_another_seed_another_order(world):
    folder, _ = world
    run(folder)
    first = [p.read_bytes() for p in read_file_list(folder / "mixed")]
    run(folder)
    assert [p.read_bytes() for p in read_file_list(folder / "mixed")] == first
    run(folder, "--seed", "7")
    assert [p.read_bytes() for p in read_file_list(folder / "mixed")] != first


def test_weights_and_caps_take_a_share(world):
    folder, config = world
    config(
        {"name": "chat", "path": "chat.parquet", "weight": 0.4},
        {"name": "text", "path": "text.parquet", "max_rows": 3},
    )
    sources = [row["source"] for row in run(folder)]
    assert (sources.count("chat"), sources.count("text")) == (10, 3)


@pytest.mark.parametrize(
    ("source", "more", "match"),
    [
        ({"name": "a", "path": "chat.parquet", "wieght": 1}, {}, "unknown key wieght"),
        ({"name": "a", "path": "chat.parquet"}, {"shards": 3}, "unknown key shards"),
        ({"name": "a", "path": "none.parquet"}, {}, "names no Parquet file"),
        ({"name": "a", "path": "chat.parquet", "weight": 2}, {}, "weight 2"),
        ({"path": "chat.parquet"}, {}, "has no name"),
    ],
)
def test_a_config_with_a_mistake_is_named(world, source, more, match):
    folder, config = world
    config(source, **more)
    with pytest.raises(InputError, match=match):
        run(folder)
    assert not (folder / "mixed").exists()


def test_other_parquet_files_do_not_leak_into_the_mix(world):
    folder, config = world
    write_table(folder / "other.parquet", pa.table({"pid": [1]}))
    config({"name": "all", "path": "*.parquet"})
    with pytest.raises(InputError, match=r"other.parquet: has no column uuid"):
        run(folder)


def test_doubles_and_bad_rows_are_counted(world, capsys):
    folder, config = world
    broken = {**chat(99), "messages": "["}
    write_records(folder / "more.parquet", [chat(0), broken])
    config({"name": "a", "path": "chat.parquet"}, {"name": "b", "path": "more.parquet"})
    rows = run(folder, "--max_bad_ratio", "0.1")
    assert len(rows) == 25
    assert "1 (messages is not a list), 1 (uuid stands twice)" in capsys.readouterr().out


def test_distillation_prompts_have_no_answer_and_repaired_escapes(tmp_path):
    turns = [message("user", r"\u4f60\u597d"), message("assistant", "好")]
    write_records(tmp_path / "in.parquet", [chat_record(record_uuid(1), "s", {}, turns), chat(2)])
    distill(["--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out.parquet")])
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": "你好"}],
        [{"role": "user", "content": "问2"}],
    ]
    assert repair(r"\ud83d\ude00") == "😀"


def test_distillation_takes_a_uniform_sample(tmp_path):
    write_records(tmp_path / "in.parquet", [chat(i) for i in range(50)])
    argv = [
        "--input",
        str(tmp_path / "in.parquet"),
        "--output",
        str(tmp_path / "out.parquet"),
        "--num_samples",
        "10",
    ]
    distill(argv)
    first = (tmp_path / "out.parquet").read_bytes()
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 10
    distill(argv)
    assert (tmp_path / "out.parquet").read_bytes() == first


def rl_inputs(folder, users=40):
    names = ("video_rec", "ad_rec", "product_rec", "label_cond_rec", "interactive_rec")
    for name in names:
        write_records(
            folder / f"sft_{name}.parquet", [chat(i, name) for i in range(users) if name != "ad_rec" or i % 2]
        )


def test_rl_data_has_no_user_in_both_files(tmp_path):
    rl_inputs(tmp_path)
    prepare_rl(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--test_size", "5"])
    train, test = (
        pq.read_table(tmp_path / "rl" / f"{name}.parquet").to_pylist() for name in ("train", "test")
    )
    uids = [{row["extra_info"]["uid"] for row in part} for part in (train, test)]
    assert uids[0] and uids[1] and not uids[0] & uids[1]
    by_task = [row["data_source"] for row in test]
    assert {task: by_task.count(task) for task in set(by_task)} == dict.fromkeys(
        ("onerec/video", "onerec/ad", "onerec/product", "onerec/label_cond", "onerec/interactive"), 5
    )
    assert train[0]["prompt"][-1]["role"] == "user" and train[0]["reward_model"]["ground_truth"].startswith(
        "答"
    )


def test_rl_data_without_a_training_user_is_refused(tmp_path):
    rl_inputs(tmp_path, users=6)
    with pytest.raises(InputError, match="leaves no training user"):
        prepare_rl(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--test_size", "100"])
