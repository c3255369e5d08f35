"""Baselines on the benchmark's own files and metrics: popularity and last-item co-occurrence.

    python baselines.py --data_dir ../data/output/benchmark_data --output_dir results/v1.0

Both learn from train_sequences.parquet (the users of the training split); neither leaves out seen items unless
--exclude_seen. Writes results_popularity/metrics.json and results_cooccurrence/metrics.json.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.metrics import KS, mean_by_name, ranking_metrics
from benchmarks.results import save_metrics
from benchmarks.tasks import TASKS, Example, available_tasks, load_examples
from onerec.errors import InputError, cli
from onerec.parquet import read_table
from onerec.run import Manifest

SEQUENCES = "train_sequences.parquet"
WINDOW = 5  # co-occurrence counts the items that follow within this many positions
Ranker = Callable[[Example], list[int]]


def load_sequences(folder: Path, task: str) -> list[tuple[list[int], list[int]]]:
    """(history, targets) of the training users of a task."""
    table = read_table(folder / SEQUENCES, ["task", "history_pid", "target_pid"], allow_empty=True)
    rows = table.to_pylist()
    return [(row["history_pid"] or [], row["target_pid"] or []) for row in rows if row["task"] == task]


def count_popularity(sequences: Sequence[tuple[list[int], list[int]]]) -> Counter[int]:
    """How often each item is a target in training."""
    return Counter(pid for _, target in sequences for pid in target)


def by_count(counts: Counter[int]) -> list[int]:
    """Items by count, the smaller id first where counts are equal."""
    return sorted(counts, key=lambda pid: (-counts[pid], pid))


def popularity_ranker(sequences: Sequence[tuple[list[int], list[int]]]) -> Ranker:
    """The most frequent targets, the same for everybody."""
    order = by_count(count_popularity(sequences))
    return lambda example: order


def cooccurrence_ranker(sequences: Sequence[tuple[list[int], list[int]]]) -> Ranker:
    """Items that followed the user's last item within `WINDOW` positions in training, then by popularity."""
    follows: dict[int, Counter[int]] = defaultdict(Counter)
    for history, target in sequences:
        items = [*history, *target]
        for place, pid in enumerate(items):
            follows[pid].update(items[place + 1 : place + 1 + WINDOW])
    popularity = count_popularity(sequences)
    order = by_count(popularity)

    def rank(example: Example) -> list[int]:
        after = follows[example.history[-1]] if example.history else Counter()
        first = sorted(after, key=lambda pid: (-after[pid], -popularity[pid], pid))
        known = set(first)
        return first + [pid for pid in order if pid not in known]

    return rank


BASELINES: dict[str, Callable[[Sequence[tuple[list[int], list[int]]]], Ranker]] = {
    "popularity": popularity_ranker,
    "cooccurrence": cooccurrence_ranker,
}


def evaluate(examples: Sequence[Example], rank: Ranker, exclude_seen: bool) -> dict[str, float]:
    """Mean ranking metrics of a baseline."""
    rows = []
    for example in examples:
        seen = set(example.history) if exclude_seen else set()
        ranked: list[int] = []
        for pid in rank(example):
            if pid not in seen:
                ranked.append(pid)
                if len(ranked) == max(KS):
                    break
        rows.append(ranking_metrics(ranked, example.answer_ids))
    return mean_by_name(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="benchmark_data folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results_<baseline>/")
    parser.add_argument("--exclude_seen", action="store_true", help="leave out the items of the history")
    parser.add_argument("--sample_size", type=int, default=-1, help="test rows a task (-1: all)")
    args = parser.parse_args(argv)
    tasks = [name for name in available_tasks(args.data_dir) if name in TASKS and TASKS[name].kind == "rank"]
    if not tasks:
        raise InputError(
            args.data_dir, "holds no <task>/<task>_test.parquet", "give the benchmark_data folder"
        )
    for name, make in BASELINES.items():
        manifest = Manifest("baseline", args)
        metrics = {}
        for task in tasks:
            examples = load_examples(args.data_dir, TASKS[task], args.sample_size)
            manifest.input(task, len(examples))
            metrics[task] = evaluate(examples, make(load_sequences(args.data_dir, task)), args.exclude_seen)
            print(
                f"{name:14s} {task:12s} recall@10 {metrics[task]['recall@10']:.4f}  ndcg@10 {metrics[task]['ndcg@10']:.4f}"
            )
        save_metrics(args.output_dir / f"results_{name}", name, metrics, manifest)


if __name__ == "__main__":
    cli(main)()
