"""RL data: the five recommendation tasks in verl's format, train and test without a user in common.

    python prepare_rl.py --input_dir output --output_dir output/rl_data --test_size 1000 --user_share 0.3

Columns: data_source (the task), prompt (list of {role, content}), ability, reward_model {style, ground_truth (the SID
text)}, extra_info {uid, task, index, uuid}. ``--test_size`` rows a task go to the test file, taken user by user; a user
of the test file is in no task's training rows.
"""

from __future__ import annotations

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

RL_TASKS = {
    "video": "sft_video_rec",
    "ad": "sft_ad_rec",
    "product": "sft_product_rec",
    "label_cond": "sft_label_cond_rec",
    "interactive": "sft_interactive_rec",
}
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMA = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", _TURNS),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct([("uid", pa.int64()), ("task", pa.string()), ("index", pa.int64()), ("uuid", pa.string())]),
        ),
    ]
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
    users = sorted(counts, key=lambda uid: (rank_of(seed, uid), uid))
    users = users[: round(len(users) * share)]
    for uid in users:
        if any(taken[task] < test_size for task in counts[uid]):
            test.add(uid)
            taken += counts[uid]
    return test, set(users) - test


def count_users(files: dict[str, Path], manifest: Manifest) -> dict[int, Counter[str]]:
    """First pass, over the metadata alone: user to rows by task."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for task, path in files.items():
        for uid in itertools.chain.from_iterable(users_of(path)):
            if isinstance(uid, int):
                counts[uid][task] += 1
        manifest.input(path, count_rows(path))
    return counts


class Writer:
    """Second pass: each task's rows to the training or the test file."""

    def __init__(
        self, folder: Path, test_users: set[int], train_users: set[int], test_size: int, manifest: Manifest
    ) -> None:
        self.train, self.test = folder / RL_TRAIN, folder / RL_TEST
        self.outputs = Outputs({self.train: SCHEMA, self.test: SCHEMA})
        self._test_users, self._train_users = test_users, train_users
        self._test_size, self._manifest = test_size, manifest
        self._taken: Counter[str] = Counter()
        self.bad = 0

    def add(self, task: str, first: int, rows: list[dict[str, Any]]) -> None:
        """Sort a batch's rows, the first of which is row ``first`` of its task."""
        parts: dict[Path, list[dict[str, Any]]] = {self.train: [], self.test: []}
        for index, row in enumerate(rows, first):
            try:
                made = to_rl_row(task, index, row)
            except ValueError as error:
                self._manifest.drop(str(error))
                self.bad += 1
                continue
            uid = made["extra_info"]["uid"]
            if uid in self._train_users:
                parts[self.train].append(made)
            elif uid not in self._test_users:
                self._manifest.drop("its user is past --user_share")
            elif self._taken[task] < self._test_size:
                self._taken[task] += 1
                parts[self.test].append(made)
            else:
                self._manifest.drop(f"{task}: past the test size, its user is in the test file")
        for path, made_rows in parts.items():
            self.outputs.add(path, pa.Table.from_pylist(made_rows, schema=SCHEMA))


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder with the sft_<task>.parquet files")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for train.parquet and test.parquet")
    parser.add_argument("--tasks", nargs="+", default=list(RL_TASKS), choices=list(RL_TASKS), help="tasks to take")
    parser.add_argument("--test_size", type=COUNT, default=1000, help="test rows a task")
    parser.add_argument(
        "--user_share",
        type=SHARE_ABOVE_0,
        default=1.0,
        help="share of the users whose rows are taken, test users included",
    )
    parser.add_argument("--seed", type=SEED, default=42, help="seed of the choice of users")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    manifest = Manifest("prepare_rl", args)
    files = {task: args.input_dir / f"{RL_TASKS[task]}.parquet" for task in args.tasks}
    counts = count_users(files, manifest)
    test_users, train_users = split_users(counts, args.test_size, args.seed, args.user_share)
    writer = Writer(args.output_dir, test_users, train_users, args.test_size, manifest)
    with writer.outputs as outputs:
        for task, path in files.items():
            first = 0
            for batch in record_batches(path, 512):
                writer.add(task, first, batch.to_pylist())
                first += batch.num_rows
        total = sum(rows or 0 for rows in manifest.inputs.values())
        manifest.check_bad_ratio(args.input_dir, writer.bad, total, args.max_bad_ratio)
        if not outputs.rows[writer.train]:
            raise InputError(
                args.input_dir,
                f"leaves no training user at --test_size {args.test_size} and --user_share {args.user_share}",
                "a smaller test size or a larger share",
            )
    for path, rows in outputs.rows.items():
        manifest.output(path, rows)
    manifest.write(args.output_dir)
    train, test = (outputs.rows[path] for path in (writer.train, writer.test))
    print(f"{train:,} training and {test:,} test prompts in {args.output_dir}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
