"""Ask a trained model: what comes next for users of the test file, or behind a list of items.

    python recommend.py --model_path runs/own/models/sft/hf --data_dir runs/own/output/benchmark_data --user u17
    python recommend.py --model_path … --data_dir … --history B00ABC B00XYZ

Users and items are named as the logs name them, items also by SID or title. `serve.py` answers the same over HTTP.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.catalogues import BenchData
from benchmarks.model import BenchModel
from benchmarks.serving.library import Library, Unknown
from benchmarks.serving.questions import Question, question
from benchmarks.serving.ranker import Ranked, Ranker, Wanted
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
    add("--product_titles", nargs="*", type=Path, default=[], help="the same of products")
    add("--device", default="auto", help="cpu, cuda or auto")
    args = parser.parse_args(argv)
    if bool(args.user) == bool(args.history):
        raise InputError("--user, --history", "are both given or both missing", "one of the two")
    return args


def ask(library: Library, model: BenchModel, args: argparse.Namespace) -> list[tuple[str, Question, Ranked]]:
    """(heading, question, answer) of every user, or of the items; raises `InputError` for one that is not there."""
    subjects = [{"user": user} for user in args.user] or [{"history": args.history}]
    try:
        asked = [question(library, args.task, **subject) for subject in subjects]
    except Unknown as error:
        raise InputError("--user" if args.user else "--history", str(error), "--help says what it takes") from None
    skip = [frozenset(one.history if args.exclude_seen else ()) for one in asked]
    wanted = [
        Wanted(args.task, one.messages, tuple(one.history), args.top, args.num_beams, seen)
        for one, seen in zip(asked, skip, strict=True)
    ]
    headings = [f"user {user}" for user in args.user] or ["items"]
    return list(zip(headings, asked, Ranker(model, library.data).rank(wanted), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    library = Library(BenchData(args.data_dir), args.titles, args.product_titles)
    shelf = library.shelf(args.task)

    def shown(pid: int) -> str:
        return f"{shelf.show(pid)}  {shelf.titles.get(pid, '')}".rstrip()

    for heading, asked, found in ask(library, BenchModel(args.model_path, device=args.device), args):
        print(f"\n{heading}, the latest of the history:")
        for pid in asked.history[-5:]:
            print(f"       {shown(pid)}")
        print("recommended, with the log-probability of the SID:")
        for place, (pid, score, _) in enumerate(found.items, 1):
            print(f"  {place:2d}. {score:8.3f}  {shown(pid)}")


if __name__ == "__main__":
    cli(main)()
