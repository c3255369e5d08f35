"""Whether the benchmark's users were seen in training, and whether their answers were."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pyarrow.compute as pc

from data.onerec_data.build import SEQUENCES, bench_file
from onerec.parquet import iter_batches
from onerec.run import Manifest
from onerec.tasks import RANK, Task

# Shares of the test rows. Histories are cut and a shop has repeats, so that a few answers may stand in training alone.
LEAKED = 0.01
# A split by user has nobody in both, leave one out everybody; between the two is neither.
NOBODY, EVERYBODY = 0.01, 0.9


@dataclasses.dataclass(frozen=True)
class Seen:
    """Of a task: test ``users``, those that have training rows too, test ``rows``, and rows whose answers leaked."""

    users: int
    in_training: int
    rows: int
    leaked: int

    def warnings(self) -> list[tuple[str, str]]:
        """(what, what would be right) of all that makes the test easier than it looks."""
        found = []
        if self.leaked > LEAKED * self.rows:
            what = f"the training rows of {self.leaked:,} of {self.rows:,} test rows' users hold the test's answer"
            found.append((what, "training rows that end before it"))
        if NOBODY * self.users < self.in_training < EVERYBODY * self.users:
            what = f"{self.in_training:,} of {self.users:,} test users are seen in training"
            right = "so it is in a split by time; by users none would be, and all where one is left out"
            found.append((what, right))
        return found


def test_answers(path: Path) -> tuple[list[str], np.ndarray, list[str], list[int]]:
    """Users of the test rows, and of every answer that is not in its row's history: row, user, item."""
    users, rows, owners, items = [], [], [], []
    for batch in iter_batches(path, ["metadata"]):
        for text in batch.column("metadata").to_pylist():
            facts = orjson.loads(text)
            user = str(facts.get("uid", f"row {len(users)}"))
            answers = next((facts[key] for key in ("answer_pid", "answer_iid") if key in facts), [])
            new = set(answers) - set(facts.get("history_pid", []))
            rows += [len(users)] * len(new)
            owners += [user] * len(new)
            items += new
            users.append(user)
    return users, np.array(rows, np.int64), owners, items


def seen_in_training(folder: Path, task: Task) -> Seen:
    """What the files of ``folder``, an output of the tasks, say of a task of the benchmark that ranks items."""
    users, rows, owners, items = test_answers(folder / bench_file(task))
    names, pids = (pd.Index(pd.Series(values).unique()) for values in (users, items))
    wanted = names.get_indexer(owners) * max(len(pids), 1) + pids.get_indexer(items)
    in_training, leaked = np.zeros(len(names), bool), np.zeros(len(users), bool)
    for batch in iter_batches(folder / SEQUENCES, ["uid", "task", "history_pid", "target_pid"]):
        batch = batch.filter(pc.equal(batch.column("task"), task.test.name))
        user = names.get_indexer([str(uid) for uid in batch.column("uid").to_pylist()])
        in_training[user[user >= 0]] = True
        for name in ("history_pid", "target_pid"):
            column = batch.column(name)
            owner = np.repeat(user, np.diff(column.offsets.to_numpy()))
            pid = pids.get_indexer(column.flatten().to_numpy(zero_copy_only=False))
            both = (owner >= 0) & (pid >= 0)
            leaked[rows[np.isin(wanted, owner[both] * len(pids) + pid[both])]] = True
    return Seen(len(names), int(in_training.sum()), len(users), int(leaked.sum()))


def warn_of_seen(folder: Path, tasks: Iterable[Task], manifest: Manifest) -> None:
    """Warn of test users and answers that training has seen; the first task that shows it speaks for all."""
    for task in tasks:
        if task.test.kind != RANK or not (folder / bench_file(task)).exists():
            continue
        if found := seen_in_training(folder, task).warnings():
            for what, right in found:
                manifest.warn(f"{task.test.name}: {what}", right)
            manifest.write(folder)
            return
