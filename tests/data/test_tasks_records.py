"""The eleven tasks: what each sample says, what is left out and counted, and what bad input gets."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.onerec_data.run import main
from onerec.errors import InputError
from onerec.folders import locked
from onerec.parquet import write_table
from onerec.records import check_record, parse_messages, parse_segments
from tests.data.tests_data import LABELS, user


def rows(release, task):
    return pq.read_table(release.output / f"{task}.parquet").to_pylist()


def turns(row):
    return parse_messages(row["messages"])


def manifest(release):
    return json.loads((release.output / "manifest.json").read_text())


def sid(release, pid):
    return release.spec.text([pid % 8, (pid * 3) % 8, (pid * 5) % 8])


def test_every_task_gives_valid_records_of_the_training_users(release):
    main(release.argv())
    counts = {}
    for path in release.output.glob("*.parquet"):
        table = pq.read_table(path).to_pylist()
        counts[path.stem] = len(table)
        assert all(check_record(row) is None for row in table)
        assert len({row["uuid"] for row in table}) == len(table)
    assert counts == {
        "pretrain_video_rec": 2,
        "pretrain_user_profile": 2,
        "pretrain_item_understand": 2,
        "sft_video_rec": 2,
        "sft_interactive_rec": 2,
        "sft_label_cond_rec": 2,
        "sft_label_pred": 4,
        "sft_ad_rec": 2,
        "sft_product_rec": 2,
        "sft_item_understand": 2,
        "sft_rec_reason": 2,
    }


def test_video_rec_shows_the_history_and_answers_with_the_targets(release):
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    *_, question, answer = turns(rows(release, "sft_video_rec")[0])
    assert "".join(sid(release, p) for p in (1, 2, 3)) in question["content"]
    assert answer["content"] == sid(release, 4) + sid(release, 5)


def test_long_histories_keep_the_latest_and_targets_the_first(release):
    release.write([user(1, hist_video_pid=[1] * 600 + [2], target_video_pid=[3] * 11 + [4])])
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    *_, question, answer = turns(rows(release, "sft_video_rec")[0])
    assert question["content"].count(sid(release, 1)) == 511 and question["content"].count(sid(release, 2)) == 1
    assert answer["content"] == sid(release, 3) * 10


def test_a_pid_without_sid_is_skipped_and_counted(release):
    release.write([user(1, hist_video_pid=[1, 99, 3]), user(2, hist_video_pid=[98, 99, 97])])
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    assert len(rows(release, "sft_video_rec")) == 1
    assert manifest(release)["dropped"] == {
        "sft_video_rec: pid without SID skipped": 4,
        "sft_video_rec: no item with a SID": 1,
    }


def test_an_empty_history_is_counted_and_not_an_error(release, capsys):
    release.write([user(1), user(2, hist_video_pid=[]), user(3, hist_video_pid=None)])
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    assert "dropped 2 (sft_video_rec: empty history)" in capsys.readouterr().out


def test_the_profiles_marks_become_sids(release):
    main(release.argv("--tasks", "pretrain_user_profile", "--benchmark", "0"))
    text = parse_segments(rows(release, "pretrain_user_profile")[0]["segments"])
    assert f"喜欢{sid(release, 1)}和" in text and "<pid:" not in text


def test_interactive_gives_one_sample_a_keyword_with_items(release):
    main(release.argv("--tasks", "sft_interactive_rec", "--benchmark", "0"))
    row = rows(release, "sft_interactive_rec")[0]
    assert json.loads(row["metadata"])["keyword"] == "猫" and "猫" in turns(row)[-2]["content"]


def test_label_pred_gives_one_sample_a_candidate(release):
    main(release.argv("--tasks", "sft_label_pred", "--benchmark", "0"))
    of_user = [row for row in rows(release, "sft_label_pred") if json.loads(row["metadata"])["uid"] == 1]
    assert [turns(row)[-1]["content"] for row in of_user] == ["是", "否"]
    assert sid(release, 4) in turns(of_user[0])[-2]["content"]


def test_label_cond_draws_among_the_kinds_present(release):
    main(release.argv("--tasks", "sft_label_cond_rec", "--benchmark", "0"))
    row = rows(release, "sft_label_cond_rec")[0]
    assert json.loads(row["metadata"])["target_interaction"] == "longview"
    assert turns(row)[-1]["content"] == sid(release, 4)


def test_label_cond_draws_no_kind_without_a_sid(release):
    """Of each user's five kinds of targets only the last has an item with a SID: all users have a row, of that kind."""
    masks = {f"target_video_{label}": [int(label == LABELS[-1]), int(label != LABELS[-1])] for label in LABELS}
    release.write([user(i, target_video_pid=[4, 999], **masks) for i in range(1, 11)])
    main(release.argv("--tasks", "sft_label_cond_rec", "--benchmark", "0"))
    found = rows(release, "sft_label_cond_rec")
    assert [json.loads(row["metadata"])["target_interaction"] for row in found] == [LABELS[-1]] * 10
    assert {turns(row)[-1]["content"] for row in found} == {sid(release, 4)}


def test_products_use_their_own_sids(release):
    main(release.argv("--tasks", "sft_product_rec", "--benchmark", "0"))
    assert turns(rows(release, "sft_product_rec")[0])[-1]["content"] == sid(release, 2) + sid(release, 3)


def test_the_order_of_the_users_does_not_change_a_users_rows(release):
    release.write([user(i) for i in range(1, 30)])
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    before = {row["uuid"]: row for row in rows(release, "sft_video_rec")}
    release.write([user(i) for i in reversed(range(1, 30))])
    main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    assert {row["uuid"]: row for row in rows(release, "sft_video_rec")} == before
    assert len({row["messages"] for row in before.values()}) > 1


def test_the_same_run_gives_the_same_bytes(release):
    main(release.argv())
    before = {p.name: p.read_bytes() for p in release.output.glob("*.parquet")}
    main(release.argv())
    assert {p.name: p.read_bytes() for p in release.output.glob("*.parquet")} == before


def test_the_benchmark_holds_the_test_users_without_their_answers(release):
    main(release.argv())
    folder = release.output / "benchmark_data"
    row = pq.read_table(folder / "video" / "video_test.parquet").to_pylist()[0]
    metadata = json.loads(row["metadata"])
    assert metadata["uid"] == 3 and metadata["answer_pid"] == [4, 5] and metadata["history_pid"] == [1, 2, 3]
    assert metadata["answer"] == sid(release, 4) + sid(release, 5)
    assert sid(release, 4) not in row["messages"] and turns(row)[-1]["role"] == "user"
    product = json.loads(pq.read_table(folder / "product" / "product_test.parquet").to_pylist()[0]["metadata"])
    assert product["answer_iid"] == [2, 3]
    sequences = pq.read_table(folder / "train_sequences.parquet").to_pylist()
    assert {row["uid"] for row in sequences} == {1, 2}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_benchmark_can_ask_for_the_validation_targets(release, workers):
    release.write([user(1), user(1, split=1, target_video_pid=[3, 2]), user(1, split=2)])
    flags = ("--tasks", "--benchmark_split", "2", "--workers", workers)
    main(release.argv(*flags))
    rows = pq.read_table(release.output / "benchmark_data" / "video" / "video_test.parquet").to_pylist()
    assert [json.loads(row["metadata"])["answer_pid"] for row in rows] == [[4, 5]]
    assert not list(release.output.glob("sft_*")), "no task was asked for"
    with pytest.raises(InputError, match="--benchmark_split: is 0; give a whole number from 1 to 2"):
        main(release.argv("--benchmark_split", "0"))


def test_masks_of_another_length_are_bad_and_past_the_ratio_the_run_fails(release):
    broken = user(2, hist_video_longview=[1])
    release.write([user(1), broken])
    with pytest.raises(InputError, match=r"1 of 2 rows are bad .*another length than its history"):
        main(release.argv("--tasks", "sft_label_cond_rec", "--benchmark", "0"))
    assert not list(release.output.glob("*.parquet")), "a failed run leaves nothing"
    main(release.argv("--tasks", "sft_label_cond_rec", "--benchmark", "0", "--max_bad_ratio", "0.5"))
    of_user = rows(release, "sft_label_cond_rec")[1]
    assert len(re.findall("s_a_", of_user["messages"])) == 2, "only the broken kind is left out: one like, one target"


def test_broken_keyword_json_and_double_users_are_counted(release):
    release.write([user(1), user(1), user(2, inter_keyword_to_items="{")])
    main(release.argv("--tasks", "sft_interactive_rec", "--benchmark", "0", "--max_bad_ratio", "1"))
    dropped = manifest(release)["dropped"]
    assert dropped["users: uid stands twice in a split"] == 1
    assert dropped["sft_interactive_rec: inter_keyword_to_items is not a JSON object of pid lists"] == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.drop_columns(["hist_video_pid"]), "has no column hist_video_pid"),
        (lambda t: t.set_column(0, "uid", pa.array(["a"] * t.num_rows)), "column uid is string"),
        (lambda t: t.slice(0, 0), "is an empty table"),
    ],
)
def test_unusable_tables_are_one_line(release, change, match):
    write_table(release.input, change(pq.read_table(release.input)))
    with pytest.raises(InputError, match=match):
        main(release.argv())


def test_codes_outside_their_codebook_are_refused(release):
    table = pa.table({"pid": [1], "codes": pa.array([[0, 8, 0]], pa.list_(pa.int32()))})
    write_table(release.folder / "video_ad_pid2sid.parquet", table)
    with pytest.raises(InputError, match="pid 1 has code 8 in layer 1; codes of that layer go from 0 to 7"):
        main(release.argv())


def test_without_products_their_task_is_left_out_of_the_benchmark(release):
    argv = release.argv("--tasks", "sft_video_rec")
    place = argv.index("--product_pid2sid")
    main(argv[:place] + argv[place + 2 :])
    folder = release.output / "benchmark_data"
    assert (folder / "video" / "video_test.parquet").exists() and not (folder / "product").exists()


def test_a_disk_that_is_full_at_the_end_leaves_no_file(release, monkeypatch):
    """Benchmark data without training records would be taken for a finished run's."""

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)  # of the manifest, the last
    with pytest.raises(InputError, match=r"output/.*: no space left on the device"):
        main(release.argv())
    assert not [path for path in release.output.rglob("*") if path.is_file()]
    monkeypatch.undo()
    main(release.argv())
    before = sorted(release.output.rglob("*"))
    with locked(release.output), pytest.raises(InputError, match="another run is at work in it"):
        main(release.argv())
    assert sorted(release.output.rglob("*")) == before and not list(release.output.rglob(".*"))
