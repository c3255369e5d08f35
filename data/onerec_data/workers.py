"""Building batches in this process or in several, results in the order of the input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from data.onerec_data.build import Built, Plan, build_users
from data.onerec_data.context import Context, load_context
from onerec.workers import map_in_order

_state: dict[str, Any] = {}


def build_all(
    batches: Iterable[pa.RecordBatch], plan: Plan, context: Context, tables: tuple, workers: int
) -> Iterator[Built]:
    """`build_users` of every batch, in order. ``tables`` are the arguments of `load_context`, for the other processes.

    Every process holds the item tables; at most two batches a worker are on their way.
    """
    if workers <= 1:
        for data in batches:
            yield build_users(data, plan, context)
        return
    names = ([task.name for task in plan.tasks], list(plan.bench), plan.all_splits, plan.test_split)
    yield from map_in_order(_build, batches, workers, _start, (names, tables))


def _start(names: tuple[list[str], list[str], bool, int], tables: tuple) -> None:
    # One thread a process: the processes are the parallelism.
    pa.set_cpu_count(1)
    _state["plan"], _state["context"] = make_plan(*names), load_context(*tables)


def _build(data: pa.RecordBatch) -> Built:
    return build_users(data, _state["plan"], _state["context"])


def make_plan(tasks: Iterable[str], bench: Iterable[str], all_splits: bool, test_split: int) -> Plan:
    """A plan from names (tasks hold functions, which do not travel between processes)."""
    from data.onerec_data.build import SFT_TASK
    from data.onerec_data.registry import TASKS

    return Plan(
        tuple(TASKS[name] for name in tasks),
        {name: TASKS[SFT_TASK[name]] for name in bench},
        all_splits,
        test_split,
    )
