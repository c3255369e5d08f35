"""From a batch of users or items to tables of records and benchmark rows: the step that workers run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from data.onerec_data.batch import TEST_SPLIT, TRAIN_SPLIT, Batch
from data.onerec_data.builders import BUILDERS
from data.onerec_data.samples import ItemJob, Job, Sample
from data.onerec_data.tables import Context, load_context
from data.onerec_data.text import messages_json, segments_json
from onerec.flags import LOCAL
from onerec.records import SCHEMA, record_uuid
from onerec.tasks import RANK, Task
from onerec.workers import map_in_order

TEST_SCHEMA = pa.schema([(name, pa.string()) for name in ("uuid", "source", "messages", "metadata")])
_PIDS = pa.list_(pa.int64())
SEQUENCE_SCHEMA = pa.schema([("uid", pa.int64()), ("task", pa.string()), ("history_pid", _PIDS), ("target_pid", _PIDS)])
BENCH_FOLDER = "benchmark_data"
SEQUENCES = f"{BENCH_FOLDER}/train_sequences.parquet"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to make of users: training records of ``tasks``, and benchmark rows of ``bench``.

    ``test_split`` is the split whose rows the benchmark asks about: 1, or 2 for validation.
    """

    tasks: tuple[Task, ...]
    bench: tuple[Task, ...]
    all_splits: bool = False
    test_split: int = TEST_SPLIT

    @property
    def every(self) -> list[Task]:
        """Every task whose samples are wanted, once."""
        return list(dict.fromkeys([*self.tasks, *self.bench]))


@dataclasses.dataclass
class Built:
    """Tables by the file that they go to, relative to the output folder, and what was left out."""

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
    batch, built = Batch(data, context.layout), Built()
    train = {row for row in range(batch.n) if batch.split[row] == TRAIN_SPLIT}
    records = set(range(batch.n)) if plan.all_splits else train
    sequences: list[tuple[str, Sample]] = []
    for task in plan.every:
        rows = range(batch.n) if task in plan.bench else sorted(records)
        samples = list(BUILDERS[task.name].build(Job(task, batch, rows, context)))
        if task in plan.tasks:
            built.tables[task.file] = records_table(task, [s for s in samples if s.row in records])
        if task in plan.bench:
            tests = [s for s in samples if batch.split[s.row] == plan.test_split]
            built.tables[bench_file(task)] = bench_table(task, tests)
            if task.test.kind == RANK:
                sequences += [(task.test.name, s) for s in samples if s.row in train]
    if plan.bench:
        built.tables[SEQUENCES] = sequence_table(batch.uid, sequences)
    built.count(batch)
    return built


_state: dict[str, Any] = {}


def build_all(
    batches: Iterable[pa.RecordBatch],
    plan: Plan,
    context: Context,
    tables: tuple,
    workers: int | None,
    runner: str = LOCAL,
) -> Iterator[Built]:
    """`build_users` of every batch, in order. ``tables`` are the arguments of `load_context`, for the other processes.

    Every process holds the item tables; at most two batches a worker are on their way.
    """
    if runner == LOCAL and workers in (None, 1):
        yield from (build_users(data, plan, context) for data in batches)
    else:
        yield from map_in_order(_build, batches, workers, _start, (plan, tables), runner)


def _start(plan: Plan, tables: tuple) -> None:
    pa.set_cpu_count(1)  # the processes are the parallelism
    _state.update(plan=plan, context=load_context(*tables))


def _build(data: pa.RecordBatch) -> Built:
    return build_users(data, **_state)


def build_items(tasks: Iterable[Task], pids: Sequence[int], captions: Sequence[str], context: Context) -> Built:
    """Training records of one batch of captions."""
    built = Built()
    for task in tasks:
        samples = item_samples(task, pids, captions, context)
        built.tables[task.file] = records_table(task, samples)
        built.counts[f"{task.name}: pid without SID skipped"] += len(pids) - len(samples)
    return built


def item_samples(task: Task, pids: Sequence[int], captions: Sequence[str], context: Context) -> list[Sample]:
    """The samples of a task over items."""
    return list(BUILDERS[task.name].build(ItemJob(task, pids, captions, context)))


def bench_file(task: Task) -> str:
    """Where a task's benchmark rows go."""
    return f"{BENCH_FOLDER}/{task.test.test_file}"


def records_table(task: Task, samples: Sequence[Sample]) -> pa.Table:
    """Samples as training records."""
    uuids = pa.array([record_uuid(task.name, *sample.key) for sample in samples], pa.string())
    source = pa.array([task.source] * len(samples), pa.string())
    metadata = strings([orjson.dumps(sample.facts) for sample in samples])
    segments = strings([segments_json(s.text) if s.text else None for s in samples])
    messages = strings([None if s.text else messages_json((*s.prompt, ("assistant", s.answer))) for s in samples])
    return pa.Table.from_arrays([uuids, source, metadata, segments, messages], schema=SCHEMA)


def bench_table(task: Task, samples: Sequence[Sample]) -> pa.Table:
    """Samples as benchmark rows: the prompt as ``messages``; the answer, its items and the history in ``metadata``."""
    uuids = pa.array([record_uuid("bench", task.test.name, *sample.key) for sample in samples], pa.string())
    source = pa.array([task.source] * len(samples), pa.string())
    messages = strings([messages_json(sample.prompt) for sample in samples])
    metadata = strings([orjson.dumps(_bench_facts(task, sample)) for sample in samples])
    return pa.Table.from_arrays([uuids, source, messages, metadata], schema=TEST_SCHEMA)


def _bench_facts(task: Task, sample: Sample) -> dict[str, Any]:
    facts = {**sample.facts, "answer": orjson.loads(b'"' + sample.answer + b'"')}
    if len(sample.answer_pid):
        facts[task.test.answer_ids] = sample.answer_pid.tolist()
        facts["history_pid"] = sample.history_pid.tolist()
    return facts


def sequence_table(uids: Sequence[int], sequences: Sequence[tuple[str, Sample]]) -> pa.Table:
    """Histories and targets of the training users, what baselines train on."""

    def lists(values: list[np.ndarray]) -> pa.Array:
        offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
        flat = np.concatenate(values) if values else np.empty(0, np.int64)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.int64()))

    columns = [
        pa.array([uids[sample.row] for _, sample in sequences], pa.int64()),
        pa.array([name for name, _ in sequences], pa.string()),
        lists([sample.history_pid for _, sample in sequences]),
        lists([sample.answer_pid for _, sample in sequences]),
    ]
    return pa.Table.from_arrays(columns, schema=SEQUENCE_SCHEMA)


def strings(values: list[bytes | None]) -> pa.Array:
    """UTF-8 bytes as an Arrow string array; they are not decoded on the way."""
    return pa.array(values, pa.binary()).view(pa.string())
