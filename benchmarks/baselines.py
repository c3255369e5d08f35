"""Baselines on the benchmark's own files and metrics: what recommenders without a language model reach.

    python baselines.py --data_dir ../data/output/benchmark_data --output_dir results/v1.0
    python baselines.py --baselines sasrec gru4rec tiger --epochs 50 …

popularity, cooccurrence (last-item transitions), itemknn, sasrec, gru4rec and tiger (see recommenders/). All learn from
train_sequences.parquet, the users of the training split, a task at a time. Writes results_<baseline>/ as evaluate.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.backends import device_of
from benchmarks.catalogues import SEQUENCES, load_catalogue, sids_of
from benchmarks.evaluators import rank
from benchmarks.intervals import N_BOOT, values_and_intervals
from benchmarks.metrics import KS
from benchmarks.recommenders import RECOMMENDERS
from benchmarks.recommenders.base import Options, Recommender, Training
from benchmarks.results import Metrics, Scores, result_folder, save_metrics
from benchmarks.tasks import TASKS, BenchTask, Example, choose_tasks, fingerprint, load_examples, load_spec
from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import BOOT, COUNT, COUNT_OR_ALL, POSITIVE, SEED, SHARE_BELOW_1, WIDTH, ArgumentParser
from onerec.parquet import Kind, read_table
from onerec.run import Manifest, seed_everything, write_text
from onerec.sid import SidSpec

QUICK = ("popularity", "cooccurrence", "itemknn")
UNSEEN = "_unseen"  # behind the name of a result that leaves out the items of the history, where one with them stands beside it


def load_training(folder: Path, task: str, index: ItemIndex | None = None) -> Training:
    """(history, targets) of the training users of a task."""
    kinds = {"uid": Kind.SHOWN, "task": Kind.TEXT, "history_pid": Kind.INTS, "target_pid": Kind.INTS}
    table = read_table(folder / SEQUENCES, kinds, allow_empty=True)
    rows = table.filter(pc.field("task") == task).to_pylist()
    both = ("history_pid", "target_pid")
    pairs = [tuple([pid for pid in row[name] or [] if pid is not None] for name in both) for row in rows]
    if not pairs:
        raise InputError(folder / SEQUENCES, f"has no row of {task}", f"of its training users, or leave out {task}")
    return Training(pairs, index, [row["uid"] for row in rows])


def history_of(example: Example, index: ItemIndex, spec: SidSpec) -> list[int]:
    """The row's history, oldest first; where the file does not say it, the first item of every SID in the prompt."""
    if example.history:
        return example.history
    sids = spec.parse("".join(turn["content"] for turn in example.messages))
    return [pids[0] for codes in sids if (pids := index.pids_of(codes))]


def evaluate(
    recommender: Recommender, examples: Sequence[Example], index: ItemIndex, spec: SidSpec, exclude_seen: bool
) -> tuple[list[dict], Scores]:
    """Prediction lines and scores of a recommender."""
    skip = [rank.seen_items(e, index, spec) if exclude_seen else set() for e in examples]
    histories = [history_of(e, index, spec) for e in examples]
    ranked = recommender.rank(histories, max(KS), skip)
    sid_of = sids_of(index)
    lines = [
        {"uuid": e.uuid, "uid": e.uid, "answer": e.answer_ids, "items": items,
         "sids": list(dict.fromkeys(sid_of[pid] for pid in items if pid in sid_of))}
        for e, items in zip(examples, ranked, strict=True)
    ]  # fmt: skip
    return lines, rank.score(examples, lines, spec)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="benchmark_data folder")
    add("--output_dir", type=Path, required=True, help="folder for results_<baseline>/")
    add("--data_version", default="", help="name of the data's version, noted in the result")
    add("--baselines", nargs="+", choices=RECOMMENDERS, default=list(QUICK), help="which")
    add("--tasks", nargs="+", default=None, help="ranking tasks (default: all there are)")
    add("--exclude_seen", action="store_true", help="leave out the items of the history")
    add(
        "--also_exclude_seen",
        action="store_true",
        help=f"the second protocol as well, in results_<baseline>{UNSEEN}/",
    )
    add("--sample_size", type=COUNT_OR_ALL, default=-1, help="test rows a task (-1: all)")
    add("--bootstrap", type=BOOT, default=N_BOOT, help="resamples of the users for the intervals (0: none)")
    # Of sasrec, gru4rec and tiger, which are trained.
    default = Options()
    add("--epochs", type=COUNT, default=default.epochs, help="epochs at most")
    add("--patience", type=COUNT, default=default.patience, help="epochs without a better validation before it stops")
    add("--batch_size", type=COUNT, default=default.batch_size, help="windows a batch")
    add("--lr", type=POSITIVE, default=default.lr, help="learning rate of Adam")
    add("--dropout", type=SHARE_BELOW_1, default=default.dropout, help="dropout, of attention too")
    add("--max_items", type=COUNT, default=default.max_items, help="items of a history (sasrec, gru4rec)")
    add("--dim", type=WIDTH, default=default.dim, help="width (sasrec, gru4rec)")
    add("--tiger_dim", type=WIDTH, default=default.tiger_dim, help="width (tiger)")
    add("--tiger_layers", type=COUNT, default=default.tiger_layers, help="layers of encoder and of decoder (tiger)")
    add("--num_beams", type=COUNT, default=default.num_beams, help="beams of the item search (tiger)")
    add("--seed", type=SEED, default=default.seed, help="seed of the training and of the resamples")
    add("--device", default=default.device, help="cpu, cuda or auto")
    return parser.parse_args(argv)


class Output:
    """A results folder on its way: what its tasks measured."""

    def __init__(self, args: argparse.Namespace, name: str, exclude_seen: bool, manifest: Manifest) -> None:
        self.args, self.name, self.folder = args, name, result_folder(args.output_dir, name)
        self.exclude_seen, self.manifest = exclude_seen, manifest
        self.metrics: Metrics = {}
        self.extra = {"data": {"version": args.data_version, "tests": {}}, "intervals": {}}

    def add(self, task: str, lines: list[dict], scores: Scores, index: ItemIndex, start: float) -> None:
        """A task's predictions and scores, written at once; ``start``: when its work began, for the line that is printed."""
        values, self.extra["intervals"][task] = values_and_intervals(
            list(scores.columns), scores, self.args.bootstrap, self.args.seed
        )
        self.metrics[task] = values | rank.coverage(lines, index.n_items) | {"samples": len(lines)}
        self.extra["data"]["tests"][task] = fingerprint(self.args.data_dir, task)
        self.manifest.output(scores.save(self.folder, task), len(lines))
        path = self.folder / f"predictions_{task}.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.manifest.output(path, len(lines))
        print(
            f"{self.name:14s} {task:12s} recall@10 {values['recall@10']:.4f}  ndcg@10 {values['ndcg@10']:.4f}"
            f"  ({len(lines)} samples, {time.monotonic() - start:.1f} s)",
            flush=True,
        )

    def save(self) -> None:
        """The folder's metrics.json, when all tasks are there."""
        settings = {k: str(v) for k, v in {**vars(self.args), "exclude_seen": self.exclude_seen}.items()}
        save_metrics(self.folder, self.name, self.metrics, self.manifest, settings, self.extra)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    names = [name for name in choose_tasks(args.data_dir, args.tasks) if name in TASKS]
    tasks: list[BenchTask] = [TASKS[name] for name in names if TASKS[name].kind == "rank"]
    if not tasks:
        raise InputError(args.data_dir, "holds no ranking task", "give the benchmark_data folder")
    names = {field.name for field in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in vars(args).items() if name in names})
    if options.dim % options.heads:
        raise InputError("--dim", f"is {options.dim}", f"a multiple of the {options.heads} attention heads")
    if set(args.baselines) - set(QUICK):
        device_of(options.device)  # said before anything is trained
    spec = load_spec(args.data_dir)
    indexes = {name: load_catalogue(args.data_dir, name, spec) for name in {task.catalogue for task in tasks}}
    protocols = {"": args.exclude_seen} | ({UNSEEN: True} if args.also_exclude_seen else {})
    for name in args.baselines:
        manifest = Manifest("baseline", args)
        outputs = [Output(args, name + suffix, exclude, manifest) for suffix, exclude in protocols.items()]
        for task in tasks:
            start, index = time.monotonic(), indexes[task.catalogue]
            seed_everything(args.seed)
            examples = load_examples(args.data_dir, task, args.sample_size, manifest)
            recommender = RECOMMENDERS[name](load_training(args.data_dir, task.name, index), options)
            for output in outputs:
                lines, scores = evaluate(recommender, examples, index, spec, output.exclude_seen)
                output.add(task.name, lines, scores, index, start)
        for output in outputs:
            output.save()


if __name__ == "__main__":
    cli(main)()
