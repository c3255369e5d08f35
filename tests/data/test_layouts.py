"""Inputs of other shapes: column maps, odd types, several files, several workers, templated reasoning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.onerec_data.layout import load_layout
from data.onerec_data.run import main
from onerec.errors import InputError
from onerec.parquet import write_table
from onerec.records import parse_messages, read_file_list
from onerec.render import split_thinking
from tests.data.tests_data import user

DATA = Path(__file__).resolve().parents[2] / "data"


def sid(release, *pids):
    return "".join(release.spec.text([pid % 8, (pid * 3) % 8, (pid * 5) % 8]) for pid in pids)


def records(release, task):
    return pq.read_table(release.output / f"{task}.parquet").to_pylist()


def answers(release, task):
    return [parse_messages(row["messages"])[-1]["content"] for row in records(release, task)]


def dropped(release):
    return json.loads((release.output / "manifest.json").read_text())["dropped"]


def without_products(release, *more):
    argv = release.argv(*more)
    place = argv.index("--product_pid2sid")
    return argv[:place] + argv[place + 2 :]


def simple_logs(release, **columns):
    """The simple layout: a row a target, lists or one pid, kinds by name."""
    table = {
        "uid": [1, 1, 2, 2],
        "history_pid_list": [[1, 2], [1, 2], [3], [3]],
        "target_pid": [3, 4, 5, 6],
        "split": [0, 0, 0, 1],
        "interaction_type": ["like", "long_view", "click", "like"],
        "query": [None, "猫", None, None],
    }
    write_table(release.input, pa.table(table | columns))


def test_the_simple_layout_gives_the_tasks_that_it_has_columns_for(release):
    simple_logs(release)
    main(without_products(release, "--layout", "simple"))
    assert answers(release, "sft_video_rec") == [sid(release, 3), sid(release, 4), sid(release, 5)]
    assert answers(release, "sft_label_pred") == ["否", "是", "否"]
    kinds = [json.loads(row["metadata"])["target_interaction"] for row in records(release, "sft_label_cond_rec")]
    assert kinds == ["like", "longview"], "a click is no interaction kind"
    assert answers(release, "sft_interactive_rec") == [sid(release, 4)]
    assert len({row["uuid"] for row in records(release, "sft_video_rec")}) == 3
    assert not (release.output / "sft_ad_rec.parquet").exists()
    assert pq.read_metadata(release.output / "benchmark_data/video/video_test.parquet").num_rows == 1


def test_what_is_left_out_for_want_of_columns_is_said(release, capsys):
    simple_logs(release)
    main(without_products(release, "--layout", "simple"))
    assert "left out: sft_ad_rec (the input has no hist_ad_pid, target_ad_pid)" in capsys.readouterr().out


def test_the_default_commands_work_without_ads_products_and_general_text(release):
    simple_logs(release)
    (release.folder / "product_pid2sid.parquet").unlink()
    raw = release.folder / "raw_data" / "onerec_data"
    raw.mkdir(parents=True)
    for name in ("video_ad_pid2sid.parquet", "pid2caption.parquet", "sid_spec.json"):
        (release.folder / name).rename(raw / name)
    environment = {
        **os.environ,
        **{"PYTHON": sys.executable, "BASE_DIR": str(release.folder), "RAW_DATA": str(release.folder / "raw_data")},
        **{"INPUT_METADATA": str(release.input), "LAYOUT": "simple", "PROMPTS": "en", "NOUN": "product"},
        "OUTPUT_BASE_DIR": str(release.output),
    }
    said = ""
    for script in ("onerec_data/run.sh", "prepare_sft.sh"):
        done = subprocess.run(["bash", script], cwd=DATA, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "left out: sft_product_rec (the input has no hist_goods_pid, target_goods_pid, --product_pid2sid)" in said
    assert "left out: sft_ad_rec (no " in said and "general_chat (no " in said
    (shard,) = read_file_list(release.output / "split_data_sft")
    assert any("product" in str(row["messages"]) for row in pq.read_table(shard).to_pylist())


def test_the_same_row_twice_is_counted_in_the_simple_layout_too(release):
    simple_logs(release, target_pid=[3, 3, 5, 6], interaction_type=["like", "like", "click", "like"], query=[None] * 4)
    main(without_products(release, "--layout", "simple", "--max_bad_ratio", "1"))
    assert dropped(release)["users: uid and the row stand twice"] == 1


def test_an_item_that_a_user_takes_again_is_a_row_of_its_own_in_the_simple_layout(release):
    again = {"history_pid_list": [[1, 2], [1, 2, 3, 4], [3], [3]], "target_pid": [3, 3, 5, 6]}
    simple_logs(release, **again, interaction_type=["like"] * 4, query=[None] * 4)
    main(without_products(release, "--layout", "simple"))
    assert answers(release, "sft_video_rec") == [sid(release, 3), sid(release, 3), sid(release, 5)]
    assert not any("twice" in reason for reason in dropped(release))


def test_later_windows_are_counted_where_a_task_is_made_once_a_user(release):
    rows = {"uid": [1, 1, 1], "split": [0, 0, 0], "window": [0, 1, 2], "target_video_pid": [[3], [2], [5]]}
    write_table(release.input, pa.table(rows | {"hist_video_pid": [[1, 2], [1], [4]]}))
    main(without_products(release, "--tasks", "pretrain_video_rec", "sft_video_rec"))
    assert len(records(release, "pretrain_video_rec")) == 1 and len(records(release, "sft_video_rec")) == 3
    assert dropped(release)["pretrain_video_rec: a later window of its user, made once from window 0"] == 2


def test_a_layout_of_ones_own_names_the_columns(release, tmp_path):
    layout = tmp_path / "mine.json"
    layout.write_text(
        json.dumps(
            {
                "columns": {"uid": "member", "hist_video_pid": "seen", "target_video_pid": "next"},
                "key": ["uid"],
                "sids": {"codes": "sid3"},
                "captions": {"caption": "title"},
            }
        )
    )
    write_table(release.input, pa.table({"member": [7], "seen": [[1, 2]], "next": [[3]]}))
    table = pq.read_table(release.folder / "video_ad_pid2sid.parquet").rename_columns(["pid", "sid3"])
    write_table(release.folder / "video_ad_pid2sid.parquet", table)
    captions = pq.read_table(release.folder / "pid2caption.parquet").rename_columns(["pid", "title"])
    write_table(release.folder / "pid2caption.parquet", captions)
    main(without_products(release, "--layout", str(layout), "--benchmark", "0"))
    assert answers(release, "sft_video_rec") == [sid(release, 3)]
    assert [json.loads(row["metadata"])["uid"] for row in records(release, "sft_video_rec")] == [7]
    assert len(records(release, "sft_item_understand")) == 2


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"column": {}}, "has an unknown key column"),
        ({"columns": {"history": "h"}}, "has an unknown part history"),
        ({"columns": {"uid": 3}}, "maps a part to what is not a column's name"),
        ([], "is not a JSON object"),
    ],
)
def test_a_layout_that_is_wrong_is_one_line(tmp_path, value, match):
    (tmp_path / "mine.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=match):
        load_layout(tmp_path / "mine.json")


@pytest.mark.parametrize("kind", [pa.string(), pa.float64(), pa.int32()])
def test_pids_as_text_or_as_floats_are_read_as_numbers(release, kind):
    table = pq.read_table(release.input)
    place = table.schema.get_field_index("hist_video_pid")
    column = pa.array(
        [[str(p) for p in row] if pa.types.is_string(kind) else row for row in table["hist_video_pid"].to_pylist()],
        pa.list_(kind),
    )
    write_table(release.input, table.set_column(place, "hist_video_pid", column))
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    *_, question, _ = parse_messages(records(release, "sft_video_rec")[0]["messages"])
    assert sid(release, 1, 2, 3) in question["content"]


def test_values_that_are_no_pids_are_counted_and_too_many_are_an_error(release):
    write_table(
        release.input,
        pa.table({"uid": [1], "hist_video_pid": [["1", "B00X", "2.5"]], "target_video_pid": [[4]]}),
    )
    argv = without_products(release, "--tasks", "sft_video_rec", "--benchmark", "0")
    with pytest.raises(InputError, match="column hist_video_pid: 2 of 3 values are not pids"):
        main(argv)
    main([*argv, "--max_bad_ratio", "0.9"])
    assert dropped(release)["users: hist_video_pid holds what is not a pid"] == 2


def test_nulls_in_lists_keep_their_place_beside_the_masks(release):
    release.write([user(1, hist_video_pid=[None, 1, 2], hist_video_like=[1, 1, None])])
    main(release.argv("--tasks", "sft_label_cond_rec", "sft_video_rec", "--benchmark", "0"))
    assert dropped(release)["users: null in hist_video_pid"] == 1
    _, question, _ = parse_messages(records(release, "sft_label_cond_rec")[0]["messages"])
    assert question["content"].count(sid(release, 1)) == 1


def test_a_folder_of_files_is_one_input_and_doubles_across_files_count(release, tmp_path):
    folder = tmp_path / "shards"
    for i, rows in enumerate([[user(1), user(2)], [user(2), user(3)]]):
        release.write(rows)
        write_table(folder / f"{i}.parquet", pq.read_table(release.input))
    argv = release.argv("--tasks", "sft_video_rec", "--benchmark", "0", "--max_bad_ratio", "1")
    argv[1] = str(folder)
    main(argv)
    assert len(records(release, "sft_video_rec")) == 3 and dropped(release)["users: uid stands twice in a split"] == 1


def test_an_empty_folder_and_half_a_file_are_one_line(release, tmp_path):
    (tmp_path / "empty").mkdir()
    argv = release.argv("--tasks", "sft_video_rec")
    with pytest.raises(InputError, match="names no Parquet file"):
        main([argv[0], str(tmp_path / "empty"), *argv[2:]])
    release.input.write_bytes(release.input.read_bytes()[:-40])
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        main(argv)
    assert not list(release.output.glob("*.parquet"))


def test_workers_do_not_change_a_byte(release):
    release.write([user(i, split=int(i % 10 == 0)) for i in range(1500)])
    main(release.argv())
    before = {p: p.read_bytes() for p in release.output.rglob("*.parquet")}
    main(release.argv("--workers", "2"))
    assert {p: p.read_bytes() for p in release.output.rglob("*.parquet")} == before


def test_a_pid_twice_in_the_captions_is_counted(release):
    write_table(release.folder / "pid2caption.parquet", pa.table({"pid": [1, 1, 2], "caption": ["猫", "狗", " "]}))
    main(release.argv("--tasks", "sft_item_understand", "--benchmark", "0"))
    assert len(records(release, "sft_item_understand")) == 1
    assert dropped(release) == {"captions: pid stands twice": 1, "captions: pid or caption is empty": 1}


@pytest.mark.parametrize("tags", [[["猫", "户外"], ["猫"], ["美食"]], ["猫,户外", "猫", "美食"]])
def test_reasoning_comes_from_the_tags_of_the_history(release, tags):
    write_table(
        release.folder / "pid2caption.parquet",
        pa.table({"pid": [1, 2, 4], "caption": ["a", "b", "c"], "tags": tags}),
    )
    main(release.argv("--tasks", "sft_reco_reason", "--benchmark", "0"))
    thought, answer = split_thinking(answers(release, "sft_reco_reason")[0])
    assert "猫和户外" in thought and "美食" in thought
    assert answer == sid(release, 4, 5)


def test_reasoning_without_tags_is_one_line(release):
    with pytest.raises(InputError, match="has no column tags"):
        main(release.argv("--tasks", "sft_reco_reason", "--benchmark", "0"))
