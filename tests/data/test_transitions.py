"""The table of transitions is made of training rows alone and says what the formula says."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.transitions import main
from onerec.errors import InputError
from onerec.parquet import write_table

ROWS = [
    {"uid": 1, "split": 0, "window": 0, "hist_video_pid": [10, 20], "target_video_pid": [30]},
    {"uid": 1, "split": 0, "window": 1, "hist_video_pid": [10], "target_video_pid": [20]},  # is in the first window
    {"uid": 1, "split": 1, "window": 0, "hist_video_pid": [10, 20, 30], "target_video_pid": [40]},
    {"uid": 1, "split": 2, "window": 0, "hist_video_pid": [10, 20], "target_video_pid": [50]},
    {"uid": 2, "split": 0, "window": 0, "hist_video_pid": [20], "target_video_pid": [30]},
]
ADS = {"hist_ad_pid": [[7]] * 5, "target_ad_pid": [[8], [], [9], [9], []]}
GOODS = {"hist_goods_pid": [[10]] * 5, "target_goods_pid": [[20], [30], [40], [50], [10]]}


def run(folder, *more, rows=ROWS, **columns):
    table = pa.Table.from_pylist(rows)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values[: len(rows)], pa.list_(pa.int64())))
    write_table(folder / "logs.parquet", table)
    main(["--input", str(folder / "logs.parquet"), "--output_path", str(folder / "t.parquet"), *more])
    return {row["pid"]: dict(zip(row["pids"], row["scores"], strict=True)) for row in read(folder)}


def read(folder):
    return pq.read_table(folder / "t.parquet").to_pylist()


def test_training_rows_alone_are_counted_and_each_once(tmp_path):
    found = run(tmp_path)
    # 10 comes once, 20 and 30 twice: 20 behind 10, 30 two places behind 10, 30 twice behind 20.
    assert found.keys() == {10, 20}
    assert found[10] == pytest.approx({20: 2**-0.2, 30: 0.5 * 2**-0.2})
    assert found[20] == pytest.approx({30: 2 / 2**0.5 * 2**-0.2})
    assert [row["pids"] for row in read(tmp_path)] == [[20, 30], [30]]
    manifest = json.loads((tmp_path / "t.manifest.json").read_text())
    assert list(manifest["outputs"].values()) == [2] and list(manifest["inputs"].values()) == [5]


def test_ads_stand_beside_videos_and_goods_in_a_table_of_their_own(tmp_path):
    assert run(tmp_path, **ADS, **GOODS).keys() == {7, 10, 20}
    # 10 comes three times, as the history of both users and as the second one's target; 20 once.
    goods = run(tmp_path, "--catalogue", "product", **ADS, **GOODS)
    assert goods == {10: pytest.approx({20: 3**-0.5, 10: 3**-0.5 * 3**-0.2})}


def test_the_same_input_gives_the_same_bytes(tmp_path):
    run(tmp_path)
    before = (tmp_path / "t.parquet").read_bytes()
    run(tmp_path)
    assert (tmp_path / "t.parquet").read_bytes() == before


def test_what_has_no_transition_is_one_line(tmp_path):
    with pytest.raises(InputError, match="has no two items in one training row; histories of two items or more"):
        run(tmp_path, rows=[ROWS[2]])
    with pytest.raises(InputError, match="has no column hist_goods_pid"):
        run(tmp_path, "--catalogue", "product")
    assert not (tmp_path / "t.parquet").exists()
