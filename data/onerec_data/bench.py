"""The benchmark's files: test prompts from the split=1 rows, what baselines train on, and the catalogues.

Layout: ``<task>/<task>_test.parquet`` (uuid, source, messages without the answer, metadata JSON with ``answer`` and
``answer_pid``, for products ``answer_iid``), ``train_sequences.parquet`` (uid, task, history_pid, target_pid of the
split=0 rows), ``video_ad_pid2sid.parquet``, ``product_pid2sid.parquet``, ``sid_spec.json`` and ``general/``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa

from data.onerec_data.build import SEQUENCE_SCHEMA, SEQUENCES, SFT_TASK, TEST_SCHEMA
from data.onerec_data.context import Context
from data.onerec_data.registry import TASKS
from onerec.files import test_file
from onerec.parquet import iter_batches, list_parquet, open_parquet, write_batches
from onerec.run import Manifest

# Items are not split by user: this many captions, evenly over the catalogue, make the item understanding test.
N_ITEM_TEST = 200


def user_tasks(parts: Collection[str], product: bool) -> list[str]:
    """Benchmark tasks over users whose required parts the input has."""
    tasks = {name: TASKS[sft] for name, sft in SFT_TASK.items() if TASKS[sft].over == "users"}
    return [name for name, task in tasks.items() if (product or not task.product) and not task.lacking(parts)]


def schemas(folder: Path, names: list[str]) -> dict[Path, pa.Schema]:
    """The files that are written row by row, with their schemas."""
    files = {folder / test_file(name): TEST_SCHEMA for name in [*names, "item_understand"]}
    return files | {folder / f"{SEQUENCES}.parquet": SEQUENCE_SCHEMA}


def output_path(folder: Path, name: str) -> Path:
    """Where the table that `build_users` calls ``bench/<name>`` goes."""
    return folder / (f"{SEQUENCES}.parquet" if name == SEQUENCES else test_file(name))


def write_catalogues(
    folder: Path,
    context: Context,
    pid2sid: Path,
    product: Path | None,
    heldout: Path | None,
    manifest: Manifest,
) -> None:
    """Copy the item tables, the SID specification and the held-out general text beside the tests."""
    for name, path in (("video_ad", pid2sid), ("product", product)):
        if path is not None:
            pid = context.layout.item_column("sids", "pid", open_parquet(path).schema_arrow.names)
            _copy(manifest, path, folder / f"{name}_pid2sid.parquet", pid)
    context.video.spec.save(folder)
    for path in list_parquet(heldout) if heldout is not None else []:
        _copy(manifest, path, folder / "general" / path.name)


def _copy(manifest: Manifest, source: Path, target: Path, pid: str | None = None) -> None:
    schema = open_parquet(source).schema_arrow
    batches = iter_batches(source, schema.names)
    if pid is not None:  # what is no item is not handed on
        batches = (batch.filter(batch.column(pid).is_valid()) for batch in batches)
    rows = write_batches(target, schema, batches)
    manifest.output(target, rows)
