"""Sizes by the number of items, users and interactions: every line is a setting, and says why."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from onerec.errors import InputError
from onerec.parquet import write_table

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("run_sizes", ROOT / "scripts" / "sizes.py")
sizes = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = sizes  # where dataclasses look up their types
SPEC.loader.exec_module(sizes)

BEAUTY = sizes.Catalogue(12_101, 22_363, 153_776, 200, 22_363, 22_363, 0, 0, 12_000)
MOVIELENS = sizes.Catalogue(1_682, 943, 98_114, 735, 943, 943, 31_000, 0, 1_682)
SHOP = sizes.Catalogue(3_686, 3_534, 20_094, 11, 4_533, 998, 0, 600, 3_600)
ASKED = dataclasses.replace(SHOP, validation=0)  # of tests alone
MANY = sizes.Catalogue(100_000, 100_000, 10_000_000, 900, 100_000, 100_000, 2_000_000, 0, 90_000)


def settings(catalogue):
    """Name to value; every line has a reason."""
    pairs = [line.split("  # ") for line in sizes.lines(catalogue)]
    assert all(len(pair) == 2 and pair[1] for pair in pairs)
    return dict(line.split("=") for line, _ in pairs)


def test_every_name_is_one_that_the_settings_know():
    lines = [line.split("  # ")[0] for of in (BEAUTY, MOVIELENS, SHOP, MANY, ASKED) for line in sizes.lines(of)]
    command = [sys.executable, ROOT / "scripts/settings.py", "list", "amazon"]
    environment = {**os.environ, "ONEREC_SETTINGS": "\n".join(lines)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {line for line in lines[-20:] if line.startswith("stg2.")} <= set(done.stdout.splitlines())


def test_steps_follow_the_interactions_as_far_as_there_is_time():
    few, shop, many = (int(settings(of)["stg2.NUM_TRAINING_STEPS"]) for of in (SHOP, BEAUTY, MANY))
    assert 380 <= few <= 395, "five epochs of 158,937 tokens in rows of 2,048"
    assert shop == 4_400 and many == 2_200, "rows of many items are longer"
    assert settings(SHOP)["stg2.MAX_LENGTH"] == "2048" and settings(MANY)["stg2.MAX_LENGTH"] == "4096"
    one_long = dataclasses.replace(BEAUTY, longest=513, beyond=513)
    assert settings(one_long)["stg2.MAX_LENGTH"] == "2048", "one long history costs nobody half of the steps"


def test_between_two_measured_catalogues_the_values_are_between_theirs():
    half = sizes.Catalogue(6_000, 9_000, 55_000, 60, 9_000, 9_000, 0, 0, 6_000)
    assert (sizes.epochs(SHOP), sizes.epochs(BEAUTY), sizes.epochs(MANY)) == (5, 19, 12)
    assert 10 < sizes.epochs(half) < 14 and sizes.weight(SHOP) < sizes.weight(half) < sizes.weight(MOVIELENS)
    assert (sizes.dropout(SHOP), sizes.dropout(BEAUTY), sizes.dropout(MOVIELENS)) == (0.3, 0.1, 0.1)
    assert 0.1 < sizes.dropout(half) < 0.3
    tiny = sizes.Catalogue(50, 20, 90, 6, 20, 20, 0, 0, 50)
    assert (sizes.epochs(tiny), sizes.weight(tiny)) == (5, 1), "nothing is guessed beyond what was measured"


def test_long_histories_take_what_movielens_took():
    long, short = settings(MOVIELENS), settings(SHOP)
    assert (long["base.HIDDEN_SIZE"], short["base.HIDDEN_SIZE"]) == ("128", "64")
    assert 1_250 < int(long["stg2.NUM_TRAINING_STEPS"]) < 1_400 and long["stg2.LEARNING_RATE"] == "3e-3"
    assert sizes.nearest(MOVIELENS).name == "MovieLens 100k" and sizes.nearest(BEAUTY).name == "Amazon Beauty"


def test_only_many_test_rows_are_sampled():
    assert settings(MANY)["evaluate.SAMPLE_SIZE"] == "20000"
    assert "evaluate.SAMPLE_SIZE" not in settings(SHOP)
    assert settings(SHOP)["evaluate.VALIDATION_USERS"] == "998"


def test_without_validation_targets_no_prior_is_asked_for():
    none = settings(ASKED)
    assert none["evaluate.VALIDATION_USERS"] == none["evaluate.PRIOR"] == "0", "its weight could not be chosen"
    assert "evaluate.PRIOR" not in settings(SHOP), "the profile says it"


def test_so_few_users_that_sft_would_read_a_row_many_times_have_several():
    assert settings(sizes.Catalogue(50, 20, 90, 6, 20, 20, 0, 0, 50))["world.WINDOWS"] == "5"
    assert {settings(of)["world.WINDOWS"] for of in (MOVIELENS, BEAUTY, SHOP, MANY)} == {"1"}
    rows = 2 * (4 * 98_114 + 40 * 943) / 4096
    assert 24 < int(settings(MOVIELENS)["sft.NUM_TRAINING_STEPS"]) <= rows
    two = sizes.Catalogue(40, 60, 120, 2, 60, 60, 0, 0, 40)
    assert settings(two)["world.WINDOWS"] == "1", "a row of two items has no earlier target"


def test_the_history_is_left_out_where_nobody_takes_an_item_again():
    assert settings(MOVIELENS)["evaluate.EXCLUDE_SEEN"] == settings(BEAUTY)["evaluate.EXCLUDE_SEEN"] == "1"
    assert settings(SHOP)["evaluate.EXCLUDE_SEEN"] == "0", "3 % of its interactions are repeats"


def test_items_without_texts_get_their_sids_from_the_logs_alone():
    bare = dataclasses.replace(SHOP, captions=1)
    assert settings(bare)["tokenizer.ENCODER"] == "none" and "tokenizer.ENCODER" not in settings(SHOP)


def logs(folder, rows):
    columns = ("uid", "split", "window", *sizes.LISTS)
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])
    write_table(folder / sizes.LOGS, table)
    write_table(folder / sizes.ITEMS, pa.table({"pid": [1, 2, 3, 4], "dense_caption": list("abcd")}))


def test_training_rows_are_counted_once_a_user(tmp_path, capsys):
    rows = [(1, 0, 0, [1, 2, 3], [4]), (1, 0, 1, [1], [2]), (2, 0, 0, [1], [2]), (1, 1, 0, [1, 2, 3, 4], [1])]
    logs(tmp_path, [*rows, (2, 2, 0, [1, 2], [3])])
    assert sizes.count(tmp_path) == sizes.Catalogue(4, 2, 6, 4, 1, 1, 0, 0, 4)
    logs(tmp_path, [(1, 0, 0, [1, 2, 1], [2]), (2, 0, 0, [1] * 400, [2]), (3, 0, 0, None, [4])])
    assert sizes.count(tmp_path) == sizes.Catalogue(4, 3, 406, 401, 0, 0, 401, 401, 4)
    logs(tmp_path, [*rows, (2, 2, 0, [1, 2], [3])])
    sizes.main(["--data_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.startswith("# 4 items, 2 training rows, 6 interactions, 3.0 a row, as ")
    sizes.main(["--data_dir", str(tmp_path), "--output", str(tmp_path / "out/sizes.txt")])
    assert (tmp_path / "out/sizes.txt").read_text() == printed


def test_a_folder_without_training_rows_or_without_files_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        sizes.main(["--data_dir", str(tmp_path)])
    logs(tmp_path, [(1, 1, 0, [1], [2])])
    with pytest.raises(InputError, match="has no training row with items; split 0 rows"):
        sizes.main(["--data_dir", str(tmp_path)])
