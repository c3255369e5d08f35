"""A command that fails late leaves nothing behind, and the corrected command then works."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data import cooccurrence, prepare_distillation, prepare_mix, prepare_rl
from data.onerec_data import run
from onerec.errors import InputError
from onerec.parquet import write_table
from tests.arguments import as_flags
from tests.data.tests_data import user

USERS = [user(1), user(2), user(3, split=1)]
NOBODY = [user(None)] * 3  # stand last, so that everything before them is made when they are counted


def spoiled(source, target):
    """A copy of a file of records whose last half no command takes."""
    table = pq.read_table(source)
    texts = table["messages"].to_pylist()
    texts[len(texts) // 2 :] = ["{"] * (len(texts) - len(texts) // 2)
    place = table.schema.get_field_index("messages")
    write_table(target, table.set_column(place, "messages", pa.array(texts, pa.string())))


def fails_then_works(folder, main, wrong, right):
    """``folder`` is as it was after the command fails, and holds something after the corrected one."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="rows are bad"):
        main(wrong)
    assert sorted(folder.rglob("*")) == before
    main(right)
    assert len(sorted(folder.rglob("*"))) > len(before)


def test_the_tasks_leave_no_empty_folder_of_the_benchmark(release, tmp_path, monkeypatch):
    release.write([*USERS, *NOBODY])
    wrong = release.argv()
    with pytest.raises(InputError, match="rows are bad"):
        run.main(wrong)
    assert not release.output.exists()
    release.write(USERS)
    run.main(release.argv())
    assert (release.output / "benchmark_data/video/video_test.parquet").exists()


def test_embeddings_of_cooccurrence_leave_no_folder(release, tmp_path):
    bad = tmp_path / "bad.parquet"
    release.write([*USERS, *NOBODY])
    release.input.rename(bad)
    release.write(USERS)
    wrong, right = (as_flags(input=path, output_path=tmp_path / "out/c.parquet") for path in (bad, release.input))
    fails_then_works(tmp_path, cooccurrence.main, wrong, right)


@pytest.mark.parametrize("command", ["rl", "mix", "distillation"])
def test_what_is_made_of_records_leaves_no_folder(release, tmp_path, command):
    release.write([user(uid) for uid in range(1, 9)])
    run.main(release.argv("--tasks", "sft_video_rec", "--benchmark", "0"))
    good, bad = release.output / "sft_video_rec.parquet", tmp_path / "bad/sft_video_rec.parquet"
    spoiled(good, bad)
    configs = []
    for number, path in enumerate((bad, good)):
        configs.append(tmp_path / f"mix{number}.json")
        configs[-1].write_text(json.dumps({"sources": [{"name": "video", "path": str(path)}]}))
    out = tmp_path / "made/here"
    main, flags = {
        "rl": (prepare_rl.main, [as_flags(input_dir=p.parent, output_dir=out, test_size=1) for p in (bad, good)]),
        "mix": (prepare_mix.main, [as_flags(config=config, output_dir=out) for config in configs]),
        "distillation": (prepare_distillation.main, [as_flags(input=p, output=out / "d.parquet") for p in (bad, good)]),
    }[command]
    fails_then_works(tmp_path, main, *flags)
