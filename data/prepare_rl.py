"""RL data: the recommendation tasks in verl's format, train and test without a user in common.

    python prepare_rl.py --input_dir output --output_dir output/rl_data --test_size 1000 --user_share 0.3

Columns: data_source (the task), prompt (list of {role, content}), ability, reward_model {style, ground_truth (the SID
text)}, extra_info {uid, task, index, uuid}. ``--test_size`` rows a task go to the test file, taken user by user; a user
of the test file is in no task's training rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import users_of
from data.outputs import Outputs
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import RL_TEST, RL_TRAIN
from onerec.flags import COUNT, SEED, SHARE_ABOVE_0, ArgumentParser
from onerec.parquet import count_rows
from onerec.records import read_record, record_batches, uid_of
from onerec.run import Manifest
from onerec.tasks import RL_TASKS, made

_TEXT = pa.string()
_REWARD = pa.struct({"style": _TEXT, "ground_truth": _TEXT})
_EXTRA = pa.struct({"uid": pa.int64(), "task": _TEXT, "index": pa.int64(), "uuid": _TEXT})
_TURNS = pa.list_(pa.struct({"role": _TEXT, "content": _TEXT}))
SCHEMA = pa.schema(
    {"data_source": _TEXT, "prompt": _TURNS, "ability": _TEXT, "reward_model": _REWARD, "extra_info": _EXTRA}
)


def to_rl_row(task: str, index: int, row: dict[str, Any]) -> dict[str, Any]:
    """One record as a row of verl's format; raises ValueError, with the reason, where it has no answer or no uid."""
    reason, turns = read_record(row)
    if reason:
        raise ValueError(reason)
    uid = uid_of(row["metadata"])
    if isinstance(turns, str) or len(turns) < 2 or turns[-1]["role"] != "assistant" or uid is None:
        raise ValueError("no prompt and answer of a user")
    if not isinstance(uid, int):
        raise ValueError("its user is no whole number")
    return {
        "data_source": f"onerec/{task}",
        "prompt": [{"role": turn["role"], "content": turn["content"]} for turn in turns[:-1]],
        "ability": "recommendation",
        "reward_model": {"style": "rule", "ground_truth": turns[-1]["content"]},
        "extra_info": {"uid": uid, "task": task, "index": index, "uuid": row["uuid"]},
    }


def rank_of(seed: int, uid: int) -> bytes:
    """A user's place in the order in which users are taken for the test file: from the seed and the uid alone."""
    return hashlib.blake2b(f"{seed}/{uid}".encode(), digest_size=8).digest()


def split_users(
    counts: dict[int, Counter[str]], test_size: int, seed: int, share: float = 1.0
) -> tuple[set[int], set[int]]:
    """Users of the test file and of the training file, given each user's rows by task.

    In hash order the first ``share`` of the users are taken: for the test file until every task has ``test_size`` rows,
    then for the training file.
    """
    taken: Counter[str] = Counter()
    test: set[int] = set()
    users = sorted(counts, key=lambda uid: (rank_of(seed, uid), uid))[: round(len(counts) * share)]
    for uid in users:
        if any(taken[task] < test_size for task in counts[uid]):
            test.add(uid)
            taken += counts[uid]
    return test, set(users) - test


def task_files(folder: Path, names: Sequence[str] | None) -> dict[str, Path]:
    """Records by task: of ``names``, or of every RL task that ``folder`` has, the others named in one line.

    Raises `InputError` where it has none.
    """
    found = {task.test.name for task in made(folder, RL_TASKS.values())}
    if names is None and (absent := [task.file for name, task in RL_TASKS.items() if name not in found]):
        print(f"left out: {', '.join(absent)} (not in {folder})", flush=True)
    chosen = [name for name in RL_TASKS if name in found] if names is None else names
    if not chosen:
        right = f"one of {', '.join(task.file for task in RL_TASKS.values())}"
        raise InputError(folder, "holds the records of no task that RL trains on", right)
    return {name: folder / RL_TASKS[name].file for name in chosen}


def count_users(files: dict[str, Path], manifest: Manifest) -> dict[int, Counter[str]]:
    """First pass, over the metadata alone: user to rows by task."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for task, path in files.items():
        for uid in itertools.chain.from_iterable(users_of(path)):
            if isinstance(uid, int):
                counts[uid][task] += 1
        manifest.input(path, count_rows(path))
    return counts


@dataclasses.dataclass
class Split:
    """Second pass: which file a row goes to; what goes to none is counted."""

    test_users: set[int]
    train_users: set[int]
    test_size: int
    manifest: Manifest
    bad: int = 0
    taken: Counter[str] = dataclasses.field(default_factory=Counter)

    def rows(self, task: str, first: int, rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """A batch's rows, the first of which is row ``first`` of its task, by file."""
        parts: dict[str, list[dict[str, Any]]] = {RL_TRAIN: [], RL_TEST: []}
        for index, row in enumerate(rows, first):
            try:
                made = to_rl_row(task, index, row)
            except ValueError as error:
                self.manifest.drop(str(error))
                self.bad += 1
                continue
            uid = made["extra_info"]["uid"]
            if uid in self.train_users:
                parts[RL_TRAIN].append(made)
            elif uid not in self.test_users:
                self.manifest.drop("its user is past --user_share")
            elif self.taken[task] < self.test_size:
                self.taken[task] += 1
                parts[RL_TEST].append(made)
            else:
                self.manifest.drop(f"{task}: past the test size, its user is in the test file")
        return parts


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--input_dir", type=Path, required=True, help="folder with the sft_<task>.parquet files")
    add("--output_dir", type=Path, required=True, help="folder for train.parquet and test.parquet")
    add("--tasks", nargs="+", choices=list(RL_TASKS), help="tasks to take; default: all that have a file")
    add("--test_size", type=COUNT, default=1000, help="test rows a task")
    share = "share of the users whose rows are taken, test users included"
    add("--user_share", type=SHARE_ABOVE_0, default=1.0, help=share)
    add("--seed", type=SEED, default=42, help="seed of the choice of users")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    manifest = Manifest("prepare_rl", args)
    files = task_files(args.input_dir, args.tasks)
    users = split_users(count_users(files, manifest), args.test_size, args.seed, args.user_share)
    split = Split(*users, args.test_size, manifest)
    train, test = (args.output_dir / name for name in (RL_TRAIN, RL_TEST))
    with Outputs({train: SCHEMA, test: SCHEMA}) as outputs:
        for task, path in files.items():
            first = 0
            for batch in record_batches(path, 512):
                for name, rows in split.rows(task, first, batch.to_pylist()).items():
                    outputs.add(args.output_dir / name, pa.Table.from_pylist(rows, schema=SCHEMA))
                first += batch.num_rows
        total = sum(rows or 0 for rows in manifest.inputs.values())
        manifest.check_bad_ratio(args.input_dir, split.bad, total, args.max_bad_ratio)
        if not outputs.rows[train]:
            what = f"leaves no training user at --test_size {args.test_size} and --user_share {args.user_share}"
            raise InputError(args.input_dir, what, "a smaller test size or a larger share")
    manifest.outputs = outputs.made()
    manifest.write(args.output_dir)
    counts = f"{outputs.rows[train]:,} training and {outputs.rows[test]:,} test prompts"
    print(f"{counts} in {args.output_dir}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
