"""The benchmark's files: test prompts from the split=1 rows, what baselines train on, and the catalogues.

Layout: ``<task>/<task>_test.parquet`` (uuid, source, messages without the answer, metadata JSON with ``answer`` and
``answer_pid``, for products ``answer_iid``), ``train_sequences.parquet`` (uid, task, history_pid, target_pid of the
split=0 rows), ``video_ad_pid2sid.parquet``, ``product_pid2sid.parquet``, ``sid_spec.json`` and ``general/``.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.onerec_data.context import Context
from data.onerec_data.registry import TASKS
from data.onerec_data.tasks import Sample
from onerec.files import BENCH_TASKS, REC_TASKS, test_file
from onerec.parquet import iter_batches, list_parquet, open_parquet, write_batches, write_table
from onerec.records import dumps, record_uuid
from onerec.run import Manifest

# Benchmark task to the SFT task whose prompts it uses.
SFT_TASK = {
    "video": "sft_video_rec",
    "ad": "sft_ad_rec",
    "product": "sft_product_rec",
    "label_cond": "sft_label_cond_rec",
    "interactive": "sft_interactive_rec",
    "label_pred": "sft_label_pred",
    "item_understand": "sft_item_understand",
    "rec_reason": "sft_rec_reason",
}
TEST_SPLIT = 1
TEST_SCHEMA = pa.schema([(name, pa.string()) for name in ("uuid", "source", "messages", "metadata")])
SEQUENCE_SCHEMA = pa.schema(
    [
        ("uid", pa.int64()),
        ("task", pa.string()),
        ("history_pid", pa.list_(pa.int64())),
        ("target_pid", pa.list_(pa.int64())),
    ]
)
# Items are not split by user: this many captions, evenly over the catalogue, make the item understanding test.
N_ITEM_TEST = 200


class Benchmark:
    """Collects test rows and training sequences while the users pass, and writes them at the end."""

    def __init__(self, folder: Path, context: Context) -> None:
        # Counters of its own: what the tasks leave out is counted once, where the training records are made.
        self.folder, self.context = folder, dataclasses.replace(context, manifest=Manifest("benchmark"))
        self._sft = {
            name: TASKS[sft] for name, sft in SFT_TASK.items() if context.product or not TASKS[sft].product
        }
        self.tasks = [task for task in self._sft.values() if task.over == "users"]
        self._tests: dict[str, list[dict[str, str]]] = {task: [] for task in BENCH_TASKS}
        self._sequences: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one user: test prompts where split is 1, training sequences where it is 0."""
        for name, task in self._sft.items():
            if task.over != "users" or (row["split"] != TEST_SPLIT and name not in REC_TASKS):
                continue
            for sample in task.build(row, self.context):
                if row["split"] == TEST_SPLIT:
                    self._tests[name].append(bench_row(name, task.source, sample))
                else:
                    self._sequences.append(
                        {
                            "uid": row["uid"],
                            "task": name,
                            "history_pid": sample.history_pid,
                            "target_pid": sample.answer_pid,
                        }
                    )

    def write(self, manifest: Manifest, args: argparse.Namespace) -> None:
        """Write every file; a task without test rows gets none."""
        items = sorted(self.context.captions.items())
        for pid, caption in items[:: max(1, len(items) // N_ITEM_TEST)]:
            task = TASKS[SFT_TASK["item_understand"]]
            for sample in task.build({"pid": pid, "caption": caption}, self.context):
                self._tests["item_understand"].append(bench_row("item_understand", task.source, sample))
        for name, rows in self._tests.items():
            if rows:
                self._save(manifest, test_file(name), pa.Table.from_pylist(rows, schema=TEST_SCHEMA))
        self._save(
            manifest, "train_sequences.parquet", pa.Table.from_pylist(self._sequences, schema=SEQUENCE_SCHEMA)
        )
        for name, path in (("video_ad", args.pid2sid), ("product", args.product_pid2sid)):
            if path is not None:
                self._copy(manifest, path, f"{name}_pid2sid.parquet")
        self.context.video.spec.save(self.folder)
        heldout = getattr(args, "general_heldout", None)
        if heldout is not None:
            for path in list_parquet(heldout):
                self._copy(manifest, path, f"general/{path.name}")

    def _save(self, manifest: Manifest, name: str, table: pa.Table) -> None:
        write_table(self.folder / name, table)
        manifest.output(self.folder / name, table.num_rows)

    def _copy(self, manifest: Manifest, source: Path, name: str) -> None:
        schema = open_parquet(source).schema_arrow
        rows = write_batches(self.folder / name, schema, iter_batches(source, schema.names))
        manifest.output(self.folder / name, rows)


def bench_row(name: str, source: str, sample: Sample) -> dict[str, str]:
    """A benchmark row: the prompt as ``messages``; the answer, its items and the history in ``metadata``."""
    metadata = {**sample.facts, "answer": sample.answer}
    if sample.answer_pid:
        metadata["answer_iid" if name == "product" else "answer_pid"] = list(sample.answer_pid)
        metadata["history_pid"] = list(sample.history_pid)
    return {
        "uuid": record_uuid("bench", name, *sample.key),
        "source": source,
        "messages": dumps(sample.prompt),
        "metadata": dumps(metadata),
    }
