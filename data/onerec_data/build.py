"""From a batch of users or items to tables of records and benchmark rows: the step that workers run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from data.onerec_data.batch import TEST_SPLIT, TRAIN_SPLIT, Batch
from data.onerec_data.context import Context
from data.onerec_data.tasks import Sample, Task
from data.onerec_data.text import messages_json, segments_json
from onerec.files import REC_TASKS
from onerec.records import SCHEMA, record_uuid

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
TEST_SCHEMA = pa.schema([(name, pa.string()) for name in ("uuid", "source", "messages", "metadata")])
_PIDS = pa.list_(pa.int64())
SEQUENCE_SCHEMA = pa.schema([("uid", pa.int64()), ("task", pa.string()), ("history_pid", _PIDS), ("target_pid", _PIDS)])
SEQUENCES = "train_sequences"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make of users: training records of ``tasks``, and benchmark rows of ``bench`` (name to task).

    ``test_split`` is the split whose rows the benchmark asks about: 1, or 2 for validation.
    """

    tasks: tuple[Task, ...]
    bench: dict[str, Task]
    all_splits: bool = False
    test_split: int = TEST_SPLIT

    @property
    def builders(self) -> list[Task]:
        """Every task whose samples are wanted, once."""
        return list(dict.fromkeys([*self.tasks, *self.bench.values()]))


@dataclasses.dataclass
class Built:
    """Tables by output name (benchmark tasks under ``bench/<task>``), and what was left out."""

    tables: dict[str, pa.Table] = dataclasses.field(default_factory=dict)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    bad_rows: int = 0
    values_read: Counter[str] = dataclasses.field(default_factory=Counter)
    values_bad: Counter[str] = dataclasses.field(default_factory=Counter)

    def count(self, left_out: Batch | Built) -> None:
        """Add what a batch left out, or another built from one."""
        bad = left_out.bad_rows
        self.bad_rows += bad if isinstance(bad, int) else len(bad)
        self.counts += left_out.counts
        self.values_read += left_out.values_read
        self.values_bad += left_out.values_bad


def build_users(data: pa.RecordBatch, plan: Plan, context: Context) -> Built:
    """All outputs of one batch of users."""
    batch = Batch(data, context.layout)
    built = Built()
    train = [row for row in range(batch.n) if plan.all_splits or batch.split[row] == TRAIN_SPLIT]
    bench_of = {task.name: name for name, task in plan.bench.items()}
    sequences: list[tuple[str, Sample]] = []
    for task in plan.builders:
        bench = bench_of.get(task.name)
        rows: Sequence[int] = train if bench is None else range(batch.n)
        samples = list(task.build(batch, rows, context))
        if task in plan.tasks:
            kept = samples if plan.all_splits else [s for s in samples if batch.split[s.row] == TRAIN_SPLIT]
            built.tables[task.name] = records_table(task, kept)
        if bench:
            tests = [s for s in samples if batch.split[s.row] == plan.test_split]
            built.tables[f"bench/{bench}"] = bench_table(bench, task, tests)
            if bench in REC_TASKS:
                sequences += [(bench, s) for s in samples if batch.split[s.row] == TRAIN_SPLIT]
    if plan.bench:
        built.tables[f"bench/{SEQUENCES}"] = sequence_table(batch.uid, sequences)
    built.count(batch)
    return built


def build_items(pids: Sequence[int], captions: Sequence[str], tasks: Iterable[Task], context: Context) -> Built:
    """Outputs of one batch of captions."""
    built = Built()
    for task in tasks:
        samples = list(task.build(pids, captions, context))
        built.tables[task.name] = records_table(task, samples)
        built.counts[f"{task.name}: pid without SID skipped"] += len(pids) - len(samples)
    return built


def records_table(task: Task, samples: Sequence[Sample]) -> pa.Table:
    """Samples as training records."""
    uuids = pa.array([record_uuid(task.name, *sample.key) for sample in samples], pa.string())
    source = pa.array([task.source] * len(samples), pa.string())
    metadata = strings([orjson.dumps(sample.facts) for sample in samples])
    segments = strings([segments_json(s.text) if s.text else None for s in samples])
    messages = strings([None if s.text else messages_json((*s.prompt, ("assistant", s.answer))) for s in samples])
    return pa.Table.from_arrays([uuids, source, metadata, segments, messages], schema=SCHEMA)


def bench_table(name: str, task: Task, samples: Sequence[Sample]) -> pa.Table:
    """Samples as benchmark rows: the prompt as ``messages``; the answer, its items and the history in ``metadata``."""
    uuids = pa.array([record_uuid("bench", name, *sample.key) for sample in samples], pa.string())
    source = pa.array([task.source] * len(samples), pa.string())
    messages = strings([messages_json(sample.prompt) for sample in samples])
    metadata = strings([orjson.dumps(_bench_facts(name, sample)) for sample in samples])
    return pa.Table.from_arrays([uuids, source, messages, metadata], schema=TEST_SCHEMA)


def _bench_facts(name: str, sample: Sample) -> dict[str, Any]:
    facts = {**sample.facts, "answer": orjson.loads(b'"' + sample.answer + b'"')}
    if len(sample.answer_pid):
        facts["answer_iid" if name == "product" else "answer_pid"] = sample.answer_pid.tolist()
        facts["history_pid"] = sample.history_pid.tolist()
    return facts


def sequence_table(uids: Sequence[int], sequences: Sequence[tuple[str, Sample]]) -> pa.Table:
    """Histories and targets of the training users, what baselines train on."""

    def lists(values: list[np.ndarray]) -> pa.Array:
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
        flat = np.concatenate(values) if values else np.empty(0, np.int64)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.int64()))

    return pa.Table.from_arrays(
        [
            pa.array([uids[sample.row] for _, sample in sequences], pa.int64()),
            pa.array([name for name, _ in sequences], pa.string()),
            lists([sample.history_pid for _, sample in sequences]),
            lists([sample.answer_pid for _, sample in sequences]),
        ],
        schema=SEQUENCE_SCHEMA,
    )


def strings(values: list[bytes | None]) -> pa.Array:
    """UTF-8 bytes as an Arrow string array; they are not decoded on the way."""
    return pa.array(values, pa.binary()).view(pa.string())
