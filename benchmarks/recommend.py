"""Ask a trained model: what comes next for users of the test file, or behind a list of items.

    python recommend.py --model_path runs/own/models/sft/hf --data_dir runs/own/output/benchmark_data --user u17
    python recommend.py --model_path … --data_dir … --history B00ABC B00XYZ

Users and items are named as the logs name them. The wording around the items is that of the first test row.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.catalogues import BenchData, resolve, sids_of
from benchmarks.evaluators.rank import history_of, seen_items
from benchmarks.model import BenchModel
from benchmarks.reporting.examples import read_titles
from benchmarks.tasks import TASKS, BenchTask, Example
from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, ArgumentParser
from onerec.tasks import RANK_TASKS


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    add("--data_dir", type=Path, required=True, help="benchmark_data folder of the data stage")
    add("--user", nargs="+", default=[], help="users of the test file, by their own ids")
    add("--history", nargs="+", default=[], help="items instead of a user, by their own ids, the oldest first")
    add("--task", choices=RANK_TASKS, default="video", help="which of the ranking tasks is asked")
    add("--top", type=COUNT, default=10, help="items a list")
    add("--num_beams", type=COUNT, default=32, help="beams of the item search")
    add("--exclude_seen", action="store_true", help="never recommend the items of the history")
    add("--titles", nargs="*", type=Path, default=[], help="pid2caption.parquet: titles beside the ids")
    add("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    if bool(args.user) == bool(args.history):
        raise InputError("--user, --history", "are both given or both missing", "one of the two")
    return args


def of_users(examples: Sequence[Example], data: BenchData, users: Sequence[str]) -> list[Example]:
    """The test row of every user, the first one; raises `InputError` where a user has none."""
    known: dict[str, Example] = {}
    for example in examples:
        known.setdefault(str(data.users.show(example.uid)), example)
    for user in users:
        if user not in known:
            raise InputError("--user", f"{user} is in no test row", f"one of its users, as {next(iter(known))}")
    return [known[user] for user in users]


def of_items(example: Example, data: BenchData, index: ItemIndex, items: Sequence[str]) -> Example:
    """``example`` with the SIDs of ``items`` in the place of its own; raises `InputError` for an unknown item."""
    sids = sids_of(index)
    by_name = {str(data.items.show(pid)): pid for pid in sids}
    for name in items:
        if name not in by_name:
            raise InputError("--history", f"{name} is no item of the catalogue", f"ids such as {next(iter(by_name))}")
    pids = [by_name[name] for name in items]
    run = "".join(data.spec.format(sids[pid]) for pid in pids)
    messages = [turn | {"content": _with_items(data, turn["content"], run)} for turn in example.messages]
    return Example(example.uuid, None, messages, "", [], pids)


def _with_items(data: BenchData, text: str, run: str) -> str:
    found = list(data.spec.pattern.finditer(text))
    return text if not found else text[: found[0].start()] + run + text[found[-1].end() :]


def recommend(
    model: BenchModel, data: BenchData, task: BenchTask, examples: Sequence[Example], args: argparse.Namespace
) -> list[list[tuple[int, float]]]:
    """(item, log-probability of its SID) of every row, the best first."""
    index, spec = data.index(task), model.check_spec(data.spec, data.folder)
    seen = [seen_items(e, index, spec) if args.exclude_seen else set() for e in examples]
    prompts = model.prompt_ids([e.messages for e in examples], False, spec.n_layers + 1)
    banned = [index.sids_within(pids) for pids in seen] if args.exclude_seen else None
    found = model.rank_items(prompts, index, max(args.num_beams, args.top), task.name, banned)
    rows = []
    for example, ranked, skip in zip(examples, found, seen, strict=True):
        score = {pid: item.score for item in reversed(ranked) for pid in index.pids_of(item.codes)}
        items = resolve(index, [item.codes for item in ranked], "all", 0, example.uuid, skip)
        rows.append([(pid, score[pid]) for pid in items[: args.top]])
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    data, task = BenchData(args.data_dir), TASKS[args.task]
    examples, titles = data.examples(task), read_titles(args.titles)
    index = data.index(task)
    asked = of_users(examples, data, args.user) or [of_items(examples[0], data, index, args.history)]
    model = BenchModel(args.model_path, device=args.device)

    def shown(pid: int) -> str:
        return f"{data.items.show(pid)}  {titles.get(pid, '')}".rstrip()

    for example, found in zip(asked, recommend(model, data, task, asked, args), strict=True):
        print(f"\n{'items' if args.history else f'user {data.users.show(example.uid)}'}, the latest of the history:")
        for pid in history_of(example, index, data.spec)[-5:]:
            print(f"       {shown(pid)}")
        print("recommended, with the log-probability of the SID:")
        for place, (pid, score) in enumerate(found, 1):
            print(f"  {place:2d}. {score:8.3f}  {shown(pid)}")


if __name__ == "__main__":
    cli(main)()
