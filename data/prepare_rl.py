"""RL data: the five recommendation tasks in verl's format, train and test without a user in common.

    python prepare_rl.py --input_dir output --output_dir output/rl_data --test_size 1000

Columns: data_source (the task), prompt (list of {role, content}), ability, reward_model {style, ground_truth (the SID
text)}, extra_info {uid, task, index, uuid}. ``--test_size`` rows a task go to the test file, taken user by user; a user
of the test file is in no task's training rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.mix import rows_of
from onerec.errors import InputError, cli
from onerec.files import RL_TEST, RL_TRAIN
from onerec.parquet import write_table
from onerec.records import parse_messages
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
            pa.struct(
                [("uid", pa.int64()), ("task", pa.string()), ("index", pa.int64()), ("uuid", pa.string())]
            ),
        ),
    ]
)


def to_rl_row(task: str, index: int, row: dict[str, Any]) -> dict[str, Any]:
    """One record as a row of verl's format; raises ValueError where it has no answer or no uid."""
    turns = parse_messages(row["messages"])
    uid = json.loads(row["metadata"]).get("uid")
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or uid is None:
        raise ValueError("no prompt and answer of a user")
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


def split_users(rows: dict[str, list[dict[str, Any]]], test_size: int, seed: int) -> set[int]:
    """Users of the test file: in hash order, as many as give every task ``test_size`` rows."""
    counts = {task: 0 for task in rows}
    by_user: dict[int, list[str]] = {}
    for task, items in rows.items():
        for item in items:
            by_user.setdefault(item["extra_info"]["uid"], []).append(task)
    chosen: set[int] = set()
    for uid in sorted(by_user, key=lambda uid: (rank_of(seed, uid), uid)):
        if any(counts[task] < test_size for task in by_user[uid]):
            chosen.add(uid)
            for task in by_user[uid]:
                counts[task] += 1
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input_dir", type=Path, required=True, help="folder with the sft_<task>.parquet files"
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for train.parquet and test.parquet"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=list(RL_TASKS), choices=list(RL_TASKS), help="tasks to take"
    )
    parser.add_argument("--test_size", type=int, default=1000, help="test rows a task")
    parser.add_argument("--seed", type=int, default=42, help="seed of the choice of test users")
    args = parser.parse_args(argv)
    if args.test_size < 1:
        raise InputError("--test_size", f"{args.test_size} is not a positive number", "at least 1")
    manifest, rows = Manifest("prepare_rl", args), {}
    for task in args.tasks:
        path, rows[task] = args.input_dir / f"{RL_TASKS[task]}.parquet", []
        for index, row in enumerate(rows_of(path)):
            try:
                rows[task].append(to_rl_row(task, index, row))
            except (ValueError, TypeError, KeyError):
                manifest.drop("no prompt and answer of a user")
        manifest.input(path, len(rows[task]))
    test_users = split_users(rows, args.test_size, args.seed)
    parts: dict[str, list[dict[str, Any]]] = {RL_TRAIN: [], RL_TEST: []}
    for task, items in rows.items():
        taken = 0
        for item in items:
            if item["extra_info"]["uid"] not in test_users:
                parts[RL_TRAIN].append(item)
            elif taken < args.test_size:
                taken += 1
                parts[RL_TEST].append(item)
            else:
                manifest.drop(f"{task}: past the test size, its user is in the test file")
    if not parts[RL_TRAIN]:
        raise InputError(
            args.input_dir, f"leaves no training user at --test_size {args.test_size}", "a smaller test size"
        )
    for name, items in parts.items():
        write_table(args.output_dir / name, pa.Table.from_pylist(items, schema=SCHEMA))
        manifest.output(args.output_dir / name, len(items))
    manifest.write(args.output_dir)
    print(
        f"{len(parts[RL_TRAIN]):,} training and {len(parts[RL_TEST]):,} test prompts in {args.output_dir}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
