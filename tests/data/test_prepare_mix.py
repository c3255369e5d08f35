"""Mixing, distillation prompts and RL data: what comes out, in which order, and what bad input gets."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import shuffle
from data.prepare_distillation import main as distill
from data.prepare_distillation import repair
from data.prepare_mix import main as mix
from data.prepare_rl import main as prepare_rl
from data.sampling import StreamSample, uuid_keys
from data.shuffle import bucket_count
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import chat_record, message, read_file_list, record_uuid, text_record, write_records

CONFIGS = Path(__file__).resolve().parents[2] / "data" / "configs"


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
        (tmp_path / "config.json").write_text(json.dumps({"sources": list(sources), "rows_per_file": 10, **more}))

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
        ({"name": "a", "path": "chat.parquet", "weight": 2}, {}, "weight is 2"),
        ({"path": "chat.parquet"}, {}, "has no name"),
    ],
)
def test_a_config_with_a_mistake_is_named(world, source, more, match):
    folder, config = world
    config(source, **more)
    with pytest.raises(InputError, match=match):
        run(folder)
    assert not (folder / "mixed").exists()


def test_other_parquet_files_do_not_leak_into_the_mix(world, capsys):
    folder, config = world
    write_table(folder / "other.parquet", pa.table({"pid": [1]}))
    config({"name": "all", "path": "*.parquet"})
    assert len(run(folder)) == 35
    assert f"left out: {folder / 'other.parquet'} (not a file of records)" in capsys.readouterr().out
    config({"name": "other", "path": "other.parquet"})
    with pytest.raises(InputError, match=r"other.parquet: has no column uuid"):
        run(folder)


def test_the_result_does_not_depend_on_buffers_threads_or_the_order_of_the_sources(world):
    folder, config = world
    big = [text_record(record_uuid("big", i), "big", {}, [f"{i}" * 3000]) for i in range(1200)]
    write_records(folder / "big.parquet", big)
    sources = [{"name": "chat", "path": "chat.parquet"}, {"name": "big", "path": "big.parquet"}]
    config(*sources)
    assert len(run(folder)) == 1225
    whole = [p.read_bytes() for p in read_file_list(folder / "mixed")]
    config(*reversed(sources))
    run(folder, "--buffer_mb", "1", "--threads", "3")
    assert json.loads((folder / "mixed" / "manifest.json").read_text())["buckets"] > 5
    assert [p.read_bytes() for p in read_file_list(folder / "mixed")] == whole
    assert not [p for p in (folder / "mixed").iterdir() if p.suffix == ".arrow" or p.is_dir()]


def test_a_double_in_another_source_is_dropped_with_spill_files_too(world):
    folder, config = world
    big = [text_record(record_uuid("big", i), "big", {}, ["x" * 9000]) for i in range(400)]
    write_records(folder / "big.parquet", big)
    write_records(folder / "again.parquet", [*big[:5], *[chat(i) for i in range(3)]])
    config(*({"name": name, "path": f"{name}.parquet"} for name in ("chat", "big", "again")))
    assert len(run(folder, "--buffer_mb", "1")) == 425
    dropped = json.loads((folder / "mixed" / "manifest.json").read_text())["dropped"]
    assert dropped == {"uuid stands twice": 8}


def test_a_sample_of_a_stream_is_uniform_and_exact():
    counts = np.zeros(20)
    for seed in range(4000):
        sample = StreamSample(20, 5, np.random.default_rng(seed))
        start, chosen = 0, []
        for n in (3, 7, 1, 9):
            chosen += (start + sample.take(n)).tolist()
            start += n
        assert len(chosen) == 5
        counts[chosen] += 1
    assert abs(counts / 4000 - 0.25).max() < 0.03


def test_a_sample_of_billions_of_rows_takes_its_share():
    """NumPy's own hypergeometric draws end at 10^9 of either kind."""
    sample = StreamSample(3_000_000_000, 1_200_000_000, np.random.default_rng(0))
    taken = np.array([len(sample.take(8192)) for _ in range(50)])
    variance = 8192 * 0.4 * 0.6
    assert abs(taken.mean() - 0.4 * 8192) < 4 * np.sqrt(variance / 50)
    assert 0.5 * variance < taken.var() < 2 * variance


def test_records_that_are_too_many_for_the_buffer_are_refused():
    """A bucket must fit it, and there are 4,096 of them at most."""
    buffer = 1 << 30
    assert bucket_count(1000, buffer) == 1 and bucket_count(4.3e12, buffer) == 4096
    with pytest.raises(InputError, match=r"8\.7 TB of records do not fit 4096 buckets of 1024 MB; at least 2026"):
        bucket_count(8.7e12, buffer)
    assert bucket_count(8.7e12, 2026 << 20) == 4096


def test_a_shard_may_hold_more_text_than_one_array_of_strings(tmp_path, monkeypatch):
    """That is 2^31 bytes; here the parts have about 1,000."""
    rows, write, longest = [chat(i) for i in range(40)], shuffle.pq.write_table, []
    table = pa.Table.from_pylist(rows, pa.schema([(name, pa.large_string()) for name in shuffle.SCHEMA.names]))

    def seen(given, path, **options):
        longest.append(max(sum(map(len, chunk.to_pylist())) for chunk in given["messages"].chunks))
        write(given, path, **options)

    monkeypatch.setattr(shuffle.pq, "write_table", seen)
    monkeypatch.setattr(shuffle, "_PART_BYTES", 1000)
    for name, given in (("a", table), ("b", pa.concat_tables([table[:7], table[7:33], table[33:]]))):
        shuffle.write_shard(tmp_path / name, given)
    assert max(longest) <= 1000 and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert pq.read_table(tmp_path / "a").to_pylist() == rows


def test_keys_follow_the_uuid_and_the_seed_and_nothing_else():
    uuids = [record_uuid(i) for i in range(1000)]
    keys, valid = uuid_keys(pa.array([*uuids, "no uuid", None]), 3)
    assert valid.tolist() == [True] * 1000 + [False, False] and len(np.unique(keys[:1000])) == 1000
    backwards, _ = uuid_keys(pa.array([u.upper() for u in reversed(uuids)]), 3)
    assert (backwards[::-1] == keys[:1000]).all()
    other, _ = uuid_keys(pa.array(uuids), 4)
    assert not (other == keys[:1000]).any()
    assert abs(np.argsort(np.argsort(keys[:1000]))[:100].mean() / 1000 - 0.5) < 0.1, "spread over the range"


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


def test_distillation_caps_each_source_then_samples_them_together(tmp_path):
    common = [chat(i, "common") for i in range(50)]
    rare = [chat(100 + i, "rare") for i in range(3)]
    again = {**common[7], "source": "other"}
    write_records(tmp_path / "in.parquet", [*common, *rare])
    write_records(tmp_path / "more.parquet", [again])
    argv = ["--input", str(tmp_path / "in.parquet"), str(tmp_path / "more.parquet"), "--output"]
    distill([*argv, str(tmp_path / "all.parquet")])
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 53  # one uuid stands twice
    distill([*argv, str(tmp_path / "capped.parquet"), "--max_per_source", "10"])
    sources = pq.read_table(tmp_path / "capped.parquet").column("source").to_pylist()
    assert sources.count("common") == 10 and sources.count("rare") == 3
    distill([*argv, str(tmp_path / "few.parquet"), "--max_per_source", "10", "--num_samples", "6"])
    assert pq.read_table(tmp_path / "few.parquet").num_rows == 6
    with pytest.raises(InputError, match="--max_per_source"):
        distill([*argv, str(tmp_path / "none.parquet"), "--max_per_source", "0"])
    assert not (tmp_path / "none.parquet").exists()


def rl_inputs(folder, users=40):
    names = ("video_rec", "ad_rec", "product_rec", "label_cond_rec", "interactive_rec")
    for name in names:
        write_records(
            folder / f"sft_{name}.parquet", [chat(i, name) for i in range(users) if name != "ad_rec" or i % 2]
        )


def test_rl_data_has_no_user_in_both_files(tmp_path):
    rl_inputs(tmp_path)
    prepare_rl(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--test_size", "5"])
    train, test = (pq.read_table(tmp_path / "rl" / f"{name}.parquet").to_pylist() for name in ("train", "test"))
    uids = [{row["extra_info"]["uid"] for row in part} for part in (train, test)]
    assert uids[0] and uids[1] and not uids[0] & uids[1]
    by_task = [row["data_source"] for row in test]
    assert {task: by_task.count(task) for task in set(by_task)} == dict.fromkeys(
        ("onerec/video", "onerec/ad", "onerec/product", "onerec/label_cond", "onerec/interactive"), 5
    )
    assert train[0]["prompt"][-1]["role"] == "user" and train[0]["reward_model"]["ground_truth"].startswith("答")


def test_rl_data_are_of_the_tasks_that_have_records(tmp_path):
    argv = ["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--test_size", "5"]
    with pytest.raises(
        InputError, match=r"holds the records of no task that RL trains on; one of sft_video_rec.parquet"
    ):
        prepare_rl(argv)
    rl_inputs(tmp_path)
    for lacking in ("ad_rec", "product_rec"):
        (tmp_path / f"sft_{lacking}.parquet").unlink()
    prepare_rl(argv)
    rows = pq.read_table(tmp_path / "rl" / "test.parquet").to_pylist()
    assert {row["extra_info"]["task"] for row in rows} == {"video", "label_cond", "interactive"}


def test_a_source_of_tasks_is_a_source_a_task_that_has_records(world, capsys):
    folder, config = world
    rl_inputs(folder, users=4)
    config({"tasks": "sft", "path": "${HERE}", "max_rows": 2}, folders={"HERE": "."})
    assert sorted(row["source"] for row in run(folder)) == sorted(
        2 * ["video_rec", "ad_rec", "product_rec", "label_cond_rec", "interactive_rec"]
    )
    said = capsys.readouterr().out
    assert (
        "left out: sft_label_pred (no " in said
        and ", sft_rec_reason (no " in said
        and "sft_reco_reason" not in said
        and " 2 rows  video_rec\n" in said
    )
    config({"tasks": "pretrain", "path": "."})
    with pytest.raises(InputError, match=r"has no records of the tasks pretrain; one of pretrain_video_rec.parquet, "):
        run(folder)
    config({"tasks": "rl", "path": "."})
    with pytest.raises(InputError, match="has no records of the tasks rl; tasks: pretrain or sft"):
        run(folder)


def test_an_optional_source_that_is_not_there_is_left_out_and_named_in_one_line(world, capsys):
    folder, config = world
    general = {"name": "general", "path": "${TEXT}/*.parquet", "optional": True}
    tasks = {"tasks": "sft", "path": ".", "optional": True}
    config({"name": "chat", "path": "chat.parquet"}, general, tasks, folders={"TEXT": "none"})
    assert len(run(folder)) == 25
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(said) == 1 and f"general (no {folder}/none/*.parquet), sft_video_rec (no " in said[0]
    left_out = json.loads((folder / "mixed" / "manifest.json").read_text())["left_out"]
    assert left_out[:2] == ["general", "sft_video_rec"] and len(left_out) == 9
    config(general, tasks, folders={"TEXT": "none"})
    with pytest.raises(InputError, match=r"config.json: names no source that is there; one of .*none/\*.parquet, "):
        run(folder)


def test_a_folder_that_a_user_names_must_be_there_optional_or_not(world):
    folder, config = world
    general = {"name": "general", "path": "${TEXT}", "optional": True}
    config({"name": "chat", "path": "chat.parquet"}, general, folders={"TEXT": "none"})
    with pytest.raises(InputError, match="elsewhere: names no Parquet file, for the source general"):
        run(folder, "--folders", "TEXT=elsewhere")
    config({"name": "chat", "path": "chat.parquet"}, general | {"optional": 1}, folders={"TEXT": "none"})
    with pytest.raises(InputError, match="source general: optional is 1; true or false"):
        run(folder)


def test_a_missing_source_of_ones_own_is_an_error_with_the_near_names(world):
    folder, config = world
    config({"name": "chat", "path": "chats.parquet"})
    with pytest.raises(InputError, match=r'for the source chat; chat.parquet; or "optional": true'):
        run(folder)
    (folder / "output").mkdir()
    config({"name": "chat", "path": "outptu/chat.parquet"})
    with pytest.raises(InputError, match=r"for the source chat; output"):
        run(folder)


def test_the_default_mixes_take_what_is_there(tmp_path, capsys):
    rl_inputs(tmp_path / "output", users=4)
    (tmp_path / "output" / "sft_ad_rec.parquet").unlink()
    argv = ["--base_dir", str(tmp_path), "--output_dir", str(tmp_path / "mixed")]
    mix(["--config", str(CONFIGS / "sft.json"), *argv])
    assert len(read_file_list(tmp_path / "mixed")) == 1
    said = capsys.readouterr().out
    assert "sft_ad_rec (no " in said and "general_chat (no " in said and "16 rows in 1 shards" in said
    with pytest.raises(InputError, match=r"pretrain\.json: names no source that is there"):
        mix(["--config", str(CONFIGS / "pretrain.json"), *argv[:-1], str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()


def test_rl_data_without_a_training_user_is_refused(tmp_path):
    rl_inputs(tmp_path, users=6)
    with pytest.raises(InputError, match="leaves no training user"):
        prepare_rl(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--test_size", "100"])


def rl_users(folder):
    return [
        {row["extra_info"]["uid"] for row in pq.read_table(folder / "rl" / f"{name}.parquet").to_pylist()}
        for name in ("train", "test")
    ]


def test_a_share_of_the_users_is_for_rl_and_a_mix_can_leave_them_out(world):
    folder, config = world
    rl_inputs(folder)
    argv = ["--input_dir", str(folder), "--output_dir", str(folder / "rl"), "--test_size", "5"]
    prepare_rl([*argv, "--user_share", "0.5"])
    train, test = rl_users(folder)
    assert len(train | test) == 20 and not train & test
    prepare_rl(argv)
    whole_train, whole_test = rl_users(folder)
    assert whole_test == test and len(whole_train | whole_test) == 40, "the share does not move the test users"

    prepare_rl([*argv, "--user_share", "0.5"])
    sources = [
        {"name": "video", "path": "sft_video_rec.parquet"},
        {"name": "ad", "path": "sft_ad_rec.parquet", "max_rows": 8},
        {"name": "text", "path": "text.parquet"},
    ]
    config(*sources, exclude_users=["rl/*.parquet"])
    rows = run(folder)
    users = {
        source: {json.loads(row["metadata"])["uid"] for row in rows if row["source"] == source}
        for source in ("video_rec", "ad_rec")
    }
    assert users["video_rec"] == set(range(40)) - train - test
    assert len(users["ad_rec"]) == 8 and not users["ad_rec"] & (train | test), "the cap counts what is left"
    assert sum(row["source"] == "text" for row in rows) == 10, "records of no user stay"
    manifest = json.loads((folder / "mixed" / "manifest.json").read_text())
    odd = sum(uid % 2 for uid in train | test)
    assert manifest["rows_of_excluded_users"] == {"video": 20, "ad": odd} and manifest["dropped"] == {}
    config(*sources, exclude_users=["rl/test.parquet"])
    run(folder)
    manifest = json.loads((folder / "mixed" / "manifest.json").read_text())
    assert manifest["rows_of_excluded_users"]["video"] == len(test)


def test_a_source_of_nobody_but_excluded_users_is_an_error(world):
    folder, config = world
    rl_inputs(folder)
    prepare_rl(["--input_dir", str(folder), "--output_dir", str(folder / "rl"), "--test_size", "5"])
    config({"name": "video", "path": "sft_video_rec.parquet"}, exclude_users=["rl/*.parquet"])
    with pytest.raises(InputError, match="source video has no row but those of excluded users"):
        run(folder)
    assert not (folder / "mixed").exists()


@pytest.mark.parametrize(
    ("excluded", "match"),
    [
        ("rl/test.parquet", "a list of files"),
        (["rl/none.parquet"], "names no Parquet file"),
        (["text.parquet"], "names no user"),
        (["other.parquet"], "has no column metadata"),
    ],
)
def test_users_to_exclude_that_cannot_be_read_are_an_error(world, excluded, match):
    folder, config = world
    write_table(folder / "other.parquet", pa.table({"pid": [1]}))
    config({"name": "chat", "path": "chat.parquet"}, exclude_users=excluded)
    with pytest.raises(InputError, match=match):
        run(folder)


@pytest.mark.parametrize("share", ["0", "1.5", "nan"])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    rl_inputs(tmp_path)
    with pytest.raises(InputError, match=r"--user_share: is .*; give a number above 0 to 1"):
        prepare_rl(["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "rl"), "--user_share", share])


def test_the_folder_above_the_output_is_refused_and_the_inputs_stay(world):
    """OUTPUT_DIR=output instead of output/split_data_sft."""
    folder, _ = world
    run(folder)
    before = sorted(folder.rglob("*"))
    for output in (folder, folder / "mixed" / ".."):
        with pytest.raises(InputError, match="holds what this command did not make"):
            run(folder, "--output_dir", str(output))
    assert sorted(folder.rglob("*")) == before
    (folder / "mixed" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"mixed: holds what this command did not make"):
        run(folder)
