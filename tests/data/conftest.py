"""A very small release: two SID tables, captions, and a handful of users that exercise the tasks' rules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from onerec.parquet import write_table
from onerec.sid import SidSpec
from tests.arguments import as_flags
from tests.data.tests_data import release_table, user


@pytest.fixture
def release(tmp_path: Path):
    """Paths of a release in ``tmp_path``; ``release.write(rows)`` puts the users in."""
    spec = SidSpec((8, 8, 8))
    for name, n in (("video_ad", 7), ("product", 3)):
        codes = [[i % 8, (i * 3) % 8, (i * 5) % 8] for i in range(1, n + 1)]
        table = pa.table({"pid": list(range(1, n + 1)), "codes": pa.array(codes, pa.list_(pa.int32()))})
        write_table(tmp_path / f"{name}_pid2sid.parquet", table)
    spec.save(tmp_path)
    write_table(tmp_path / "pid2caption.parquet", pa.table({"pid": [1, 2, 99], "dense_caption": ["猫", "狗", "鱼"]}))
    input_path = tmp_path / "release.parquet"

    def write(rows):
        write_table(input_path, release_table(rows))

    write([user(1), user(2), user(3, split=1)])
    return SimpleNamespace(
        folder=tmp_path,
        input=input_path,
        spec=spec,
        write=write,
        output=tmp_path / "output",
        argv=lambda *more: as_flags(
            *more,
            input=input_path,
            pid2sid=tmp_path / "video_ad_pid2sid.parquet",
            product_pid2sid=tmp_path / "product_pid2sid.parquet",
            caption=tmp_path / "pid2caption.parquet",
            output_dir=tmp_path / "output",
        ),
    )
