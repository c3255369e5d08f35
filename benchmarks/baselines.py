"""Baselines on the benchmark's own files and metrics: what recommenders without a language model reach.

    python baselines.py --data_dir ../data/output/benchmark_data --output_dir results/v1.0
    python baselines.py --baselines sasrec gru4rec tiger --epochs 50 …

popularity, cooccurrence (of the last item), itemknn, transitions (decayed), sasrec, gru4rec and tiger (see
recommenders/). All learn from train_sequences.parquet, the users of the training split, a task at a time. Writes
results_<baseline>/ as evaluate.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.backends.base import device_of
from benchmarks.catalogues import SEQUENCES, BenchData, sids_of
from benchmarks.evaluators import rank
from benchmarks.intervals import N_BOOT
from benchmarks.metrics import KS
from benchmarks.output import Output
from benchmarks.recommenders import RECOMMENDERS
from benchmarks.recommenders.base import Options, Recommender, Sequences, Training
from benchmarks.tasks import TASKS, BenchTask, choose_tasks
from onerec.catalog import ItemIndex
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import BOOT, COUNT, COUNT_OR_ALL, POSITIVE, SEED, SHARE_BELOW_1, WIDTH, ArgumentParser
from onerec.parquet import Kind, read_table
from onerec.run import Manifest, seed_everything

QUICK = ("popularity", "cooccurrence", "itemknn", "transitions")
UNSEEN = "_unseen"  # behind the name of the second result, which leaves out the items of the history


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


def load_validation(folder: Path, task: BenchTask, index: ItemIndex, args: argparse.Namespace) -> Sequences:
    """(history, targets) of the validation users of a task; raises `InputError` where they have other SIDs."""
    data = BenchData(folder)
    evaluator = rank.RankEvaluator(task, data, argparse.Namespace(**{**vars(args), "sample_size": -1}))
    evaluator.load(Manifest("validation", {}))
    if evaluator.index.digest != index.digest:
        raise InputError(folder, "has other SIDs than the test data", "both of one pid2sid.parquet")
    return [(rank.history_of(e, index, data.spec), e.answer_ids) for e in evaluator.examples]


def ask(evaluator: rank.RankEvaluator, recommender: Recommender) -> list[dict[str, Any]]:
    """Lines of the predictions, as `RankEvaluator.ask` has them of a language model."""
    index, examples = evaluator.index, evaluator.examples
    histories = [rank.history_of(e, index, evaluator.data.spec) for e in examples]
    ranked = recommender.rank(histories, max(KS), evaluator.seen)
    sid_of = sids_of(index)

    def line(example: Any, items: list[int]) -> dict[str, Any]:
        sids = list(dict.fromkeys(sid_of[pid] for pid in items if pid in sid_of))
        return {"uuid": example.uuid, "uid": example.uid, "answer": example.answer_ids, "items": items, "sids": sids}

    evaluator.lines = [line(*pair) for pair in zip(examples, ranked, strict=True)]
    return evaluator.lines


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="benchmark_data folder")
    add("--output_dir", type=Path, required=True, help="folder for results_<baseline>/")
    add("--data_version", default="", help="name of the data's version, noted in the result")
    add("--baselines", nargs="+", choices=RECOMMENDERS, default=list(QUICK), help="which")
    add("--tasks", nargs="+", default=None, help="ranking tasks (default: all there are)")
    add("--exclude_seen", action="store_true", help="leave out the items of the history")
    add("--also_exclude_seen", action="store_true", help=f"the second protocol as well, in results_<baseline>{UNSEEN}/")
    add(
        "--sample_size", type=COUNT_OR_ALL, default=-1, help="test rows a task, those of evaluate.py --seed 0 (-1: all)"
    )
    users = "benchmark_data of the validation targets, whose users stop a training (default: held-out training users)"
    add("--validation_dir", type=Path, help=users)
    add("--bootstrap", type=BOOT, default=N_BOOT, help="resamples of the users for the intervals (0: none)")
    # Of sasrec, gru4rec and tiger, which are trained.
    default = Options()
    add("--epochs", type=COUNT, default=default.epochs, help="epochs at most")
    add("--patience", type=COUNT, default=default.patience, help="epochs without a better validation before it stops")
    add("--batch_size", type=COUNT, default=default.batch_size, help="windows a batch")
    add("--lr", type=POSITIVE, default=default.lr, help="learning rate of Adam")
    add("--dropout", type=SHARE_BELOW_1, default=default.dropout, help="dropout, of attention too (sasrec, gru4rec)")
    negatives = "random items beside the batch's targets in a softmax over more items (sasrec, gru4rec)"
    add("--negatives", type=COUNT, default=default.negatives, help=negatives)
    add("--max_items", type=COUNT, default=default.max_items, help="items of a history (sasrec, gru4rec)")
    add("--dim", type=WIDTH, default=default.dim, help="width (sasrec, gru4rec)")
    add("--tiger_dim", type=WIDTH, default=default.tiger_dim, help="width (tiger)")
    add("--tiger_dropout", type=SHARE_BELOW_1, default=default.tiger_dropout, help="dropout of attention (tiger)")
    add("--tiger_layers", type=COUNT, default=default.tiger_layers, help="layers of encoder and of decoder (tiger)")
    add("--num_beams", type=COUNT, default=default.num_beams, help="beams of the item search (tiger)")
    add("--seed", type=SEED, default=default.seed, help="seed of the training and of the resamples")
    add("--device", default=default.device, help="cpu, cuda or auto")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    names = [name for name in choose_tasks(args.data_dir, args.tasks) if name in TASKS]
    tasks: list[BenchTask] = [TASKS[name] for name in names if TASKS[name].kind == "rank"]
    if not tasks:
        raise InputError(args.data_dir, "holds no ranking task", "give the benchmark_data folder")
    names = {field.name for field in dataclasses.fields(Options)}
    options = Options(**{name: value for name, value in vars(args).items() if name in names})
    options = dataclasses.replace(options, exclude_seen=args.exclude_seen or args.also_exclude_seen)
    if options.dim % options.heads:
        raise InputError("--dim", f"is {options.dim}", f"a multiple of the {options.heads} attention heads")
    if set(args.baselines) - set(QUICK):
        device_of(options.device)  # said before anything is trained
    data = BenchData(args.data_dir)
    for task in tasks:
        data.index(task)
    # The rows that evaluate.py draws for models; --seed is of the training here.
    same_rows = argparse.Namespace(**{**vars(args), "seed": 0})
    protocols = {"": args.exclude_seen} | ({UNSEEN: True} if args.also_exclude_seen else {})
    for name in args.baselines:
        manifest = Manifest("baseline", args)
        outputs = [(exclude, Output(args, name + suffix, manifest)) for suffix, exclude in protocols.items()]
        for task in tasks:
            start = time.monotonic()
            seed_everything(args.seed)
            evaluator = rank.RankEvaluator(task, data, same_rows)
            evaluator.load(manifest)
            training = load_training(args.data_dir, task.name, evaluator.index)
            if args.validation_dir and name not in QUICK:
                training.validation = load_validation(args.validation_dir, task, evaluator.index, same_rows)
            recommender = RECOMMENDERS[name](training, options)
            for exclude, output in outputs:
                evaluator.leave_out_seen(exclude)
                output.predictions(task.name, ask(evaluator, recommender))
                values = output.add(task.name, evaluator.score(None))
                print(
                    f"{output.name:14s} {task.name:12s} recall@10 {values['recall@10']:.4f}  "
                    f"ndcg@10 {values['ndcg@10']:.4f}  "
                    f"({values['samples']:.0f} samples, {time.monotonic() - start:.1f} s)",
                    flush=True,
                )
        for exclude, output in outputs:
            output.save({**vars(args), "exclude_seen": exclude})


if __name__ == "__main__":
    cli(main)()
