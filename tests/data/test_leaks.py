"""Test users and answers that training has seen are warned of; leave one out and a split by user are not."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from data.onerec_data import leaks, run
from onerec.parquet import write_table
from onerec.tasks import TASKS

TASK = TASKS["sft_video_rec"]
USERS = range(1, 21)


def row(uid, history, answer, split=0):
    return {"uid": uid, "split": split, "hist_video_pid": history, "target_video_pid": answer}


def warned(release, capsys, rows):
    """The warnings on standard error of a run over ``rows``; the same stand in the manifest."""
    write_table(release.input, pa.Table.from_pylist(rows))
    run.main(release.argv("--tasks", "sft_video_rec"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    manifest = json.loads((release.output / "manifest.json").read_text())
    assert said == [f"warning: {text}" for text in manifest.get("warnings", [])]
    return said


def test_a_split_by_user_has_no_warning(release, capsys):
    rows = [row(uid, [1, 2], [3]) for uid in USERS] + [row(uid + 100, [1, 2], [3], 1) for uid in USERS]
    assert warned(release, capsys, rows) == []


def test_leave_one_out_has_no_warning_even_where_items_repeat(release, capsys):
    rows = [row(uid, [1, 2], [3]) for uid in USERS]
    rows += [row(uid, [1, 2, 3], [4 if uid % 2 else 2], 1) for uid in USERS]
    assert warned(release, capsys, rows) == []


def test_an_answer_in_the_training_row_of_its_user_is_warned_of(release, capsys):
    rows = [row(uid, [1, 2], [3, 4] if uid == 1 else [3]) for uid in USERS]
    rows += [row(uid, [1, 2, 3], [4], 1) for uid in USERS]
    (line,) = warned(release, capsys, rows)
    assert line.startswith("warning: video: the training rows of 1 of 20 test rows' users hold the test's answer; ")
    assert leaks.seen_in_training(release.output, TASK) == leaks.Seen(20, 20, 20, 1)


@pytest.mark.parametrize("train", [2, 10, 17])
def test_users_of_whom_some_are_in_training_are_warned_of(release, capsys, train):
    rows = [row(uid, [1, 2], [3]) for uid in list(USERS)[:train]]
    rows += [row(uid, [1, 2, 3], [4], 1) for uid in USERS]
    (line,) = warned(release, capsys, rows)
    assert line.startswith(
        f"warning: video: {train} of 20 test users are seen in training; so it is in a split by time"
    )
