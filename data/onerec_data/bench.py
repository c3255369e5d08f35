"""The benchmark's files: test prompts from the split=1 rows, what baselines train on, and the catalogues.

Layout: ``<task>/<task>_test.parquet`` (uuid, source, messages without the answer, metadata JSON with ``answer`` and
``answer_pid``, for products ``answer_iid``), ``train_sequences.parquet`` (uid, task, history_pid, target_pid of the
split=0 rows), ``video_ad_pid2sid.parquet``, ``product_pid2sid.parquet``, ``sid_spec.json``, ``prompts.json`` (which
words the prompts have), ``general/``, and, where the data have them, the dictionaries of users' and items' own ids
(`onerec.ids`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from data.onerec_data.build import SEQUENCE_SCHEMA, SEQUENCES, TEST_SCHEMA, bench_file
from data.onerec_data.builders import BUILDERS
from data.onerec_data.tables import Context
from onerec.ids import ITEM_IDS, USER_IDS
from onerec.parquet import iter_batches, list_parquet, open_parquet, write_batches
from onerec.run import Manifest
from onerec.tasks import GENERAL, PRODUCT, TESTED, Task

# Items are not split by user: this many captions, evenly over the catalogue, make the tests of the tasks over items.
N_ITEM_TESTS = 200
ITEM_TESTS = [task for task in TESTED.values() if BUILDERS[task.name].over == "items"]


def user_tasks(parts: Collection[str], product: bool) -> tuple[Task, ...]:
    """Benchmark tasks over users whose required parts the input has."""
    tasks = [task for task in TESTED.values() if task not in ITEM_TESTS and (product or task.catalogue != PRODUCT)]
    return tuple(task for task in tasks if not BUILDERS[task.name].lacking(parts))


def schemas(tasks: Sequence[Task]) -> dict[str, pa.Schema]:
    """The files that are written row by row, with their schemas."""
    return {bench_file(task): TEST_SCHEMA for task in [*tasks, *ITEM_TESTS]} | {SEQUENCES: SEQUENCE_SCHEMA}


def write_catalogues(
    folder: Path, context: Context, tables: dict[str, Path | None], heldout: Path | None, manifest: Manifest
) -> None:
    """Beside the tests: the item tables by catalogue, the SIDs' specification, the words, held-out general text."""
    for name, path in tables.items():
        if path is not None:
            pid = context.layout.item_column("sids", "pid", open_parquet(path).schema_arrow.names)
            _copy(manifest, path, folder / f"{name}_pid2sid.parquet", pid)
    context.video.spec.save(folder)
    context.prompts.words.save(folder)
    for name in (ITEM_IDS, USER_IDS):
        if context.video.path.with_name(name).is_file():
            _copy(manifest, context.video.path.with_name(name), folder / name)
    for path in list_parquet(heldout) if heldout is not None else []:
        _copy(manifest, path, folder / GENERAL / path.name)


def _copy(manifest: Manifest, source: Path, target: Path, pid: str | None = None) -> None:
    schema = open_parquet(source).schema_arrow
    batches = iter_batches(source, schema.names)
    if pid is not None:  # what is no item is not handed on
        batches = (batch.filter(batch.column(pid).is_valid()) for batch in batches)
    manifest.output(target, write_batches(target, schema, batches))
