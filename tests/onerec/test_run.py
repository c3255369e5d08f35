"""Run directories and errors: nothing half-written, one line on standard error, counted rows."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from onerec.cli import cli
from onerec.errors import InputError
from onerec.folders import atomic_path
from onerec.parquet import list_parquet, read_table, write_table
from onerec.run import Manifest, progress, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]


def test_threads_that_write_one_file_do_not_take_each_others(tmp_path):
    def write(barrier):
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("whole")
            barrier.wait()

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(write, barrier) for _ in range(4)]:
            done.result()
    assert (tmp_path / "x").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_path(tmp_path / "out", ours=True) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
    assert os.listdir(tmp_path / "out") == ["new"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            InputError("x.parquet", "has no column pid", "it has uid"),
            "error: x.parquet: has no column pid; it has uid\n",
        ),
        (OSError(28, "No space left on device", "out/x"), "error: out/x: no space left on the device;"),
        (PermissionError(13, "Permission denied", "out"), "error: out: permission denied;"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, error, line):
    @cli
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.startswith(line) and captured.err.count("\n") == 1


def test_manifest_counts_and_fails_past_the_ratio(tmp_path):
    manifest = Manifest("stage", {"seed": 3})
    manifest.drop("no SID", 2)
    manifest.drop("empty history")
    assert manifest.dropped_text() == "dropped 2 (no SID), 1 (empty history)"
    manifest.check_bad_ratio("x", 3, 300, 0.01)
    with pytest.raises(InputError, match="3 of 299 rows are bad"):
        manifest.check_bad_ratio("x", 3, 299, 0.01)
    value = json.loads(manifest.write(tmp_path).read_text())
    assert value["seed"] == 3 and value["dropped"] == {"no SID": 2, "empty history": 1}


def test_a_truncated_parquet_file_and_a_missing_column_are_named(tmp_path):
    path = tmp_path / "x.parquet"
    write_table(path, pa.table({"pid": [1, 2]}))
    with pytest.raises(InputError, match="has no column embedding; it has pid"):
        read_table(path, ["pid", "embedding"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="is not a whole Parquet file"):
        read_table(path, ["pid"])
    with pytest.raises(InputError, match="names no Parquet file"):
        list_parquet(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let the test mount a tmpfs")
    try:
        with pytest.raises(InputError, match="no space left on the device"):
            write_table(disk / "x.parquet", pa.table({"x": os.urandom(1 << 18).hex().split("0")}))
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_output_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file; the output folder must be a folder"):
        write_json(tmp_path / "file" / "x.json", {})


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_read_only_output_folder_is_one_line(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let the test mount a tmpfs")
    try:
        with pytest.raises(InputError, match="permission denied; choose a path"):
            write_table(disk / "x.parquet", pa.table({"x": [1]}))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_progress_passes_everything_through_and_names_rate_and_time_left(capsys):
    assert list(progress(range(3), "rows", every=0)) == [0, 1, 2]
    assert "rows: 3/3 rows" in capsys.readouterr().err


def test_importing_the_contracts_pulls_in_no_torch():
    code = "import sys, onerec.sid, onerec.records, onerec.render, onerec.catalog, onerec.items.item; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_warning_is_a_line_on_standard_error_and_stands_in_the_manifest(tmp_path, capsys):
    manifest = Manifest("stage", {})
    assert "warnings" not in manifest.as_dict()
    manifest.warn("the loss did not fall", "another rate")
    assert capsys.readouterr().err == "warning: the loss did not fall; another rate\n"
    manifest.write(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["warnings"] == ["the loss did not fall; another rate"]
