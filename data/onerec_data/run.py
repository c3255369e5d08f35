"""Run the RecIF tasks over a release: every input is read once, for all the tasks that are switched on.

    python data/onerec_data/run.py --input raw_data/onerec_data/onerec_bench_release.parquet \\
        --pid2sid raw_data/onerec_data/video_ad_pid2sid.parquet --product_pid2sid raw_data/onerec_data/product_pid2sid.parquet \\
        --caption raw_data/onerec_data/pid2caption.parquet --output_dir output

Writes <output_dir>/<task>.parquet for each task (pretrain_video_rec, sft_video_rec, …) in the record format, the
benchmark's test files from the split=1 rows into <output_dir>/benchmark_data, and manifest.json. Users pass in batches,
so memory does not grow with the input. Logs of your own: --layout my_layout.json (see layouts/).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.onerec_data import bench
from data.onerec_data.batch import TEST_SPLIT
from data.onerec_data.build import SFT_TASK, Built, bench_table, build_items
from data.onerec_data.context import load_context
from data.onerec_data.layout import Layout, load_layout
from data.onerec_data.registry import TASKS
from data.onerec_data.tasks import VIDEO_COLUMNS, Task
from data.onerec_data.users import Captions, Users, available_parts
from data.onerec_data.workers import build_all, make_plan
from data.outputs import Outputs
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import PROCESSES, SEED, ArgumentParser, integer
from onerec.folders import locked, together
from onerec.records import SCHEMA
from onerec.run import Manifest, progress


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that every task's script and the whole run share."""
    parser.add_argument(
        "--input", type=Path, help="users: a Parquet file, a folder of them or a pattern (one row a user)"
    )
    parser.add_argument("--pid2sid", type=Path, required=True, help="pid to SID of videos and ads")
    parser.add_argument("--product_pid2sid", type=Path, help="pid to SID of products")
    parser.add_argument("--caption", type=Path, help="pid2caption.parquet (pid, dense_caption or caption, tags)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for <task>.parquet")
    parser.add_argument(
        "--layout", default="release", help="release, simple, or a JSON file: which column plays which part"
    )
    parser.add_argument("--seed", type=SEED, default=42, help="seed of every draw")
    parser.add_argument("--workers", type=PROCESSES, default=1, help="processes that build records")
    parser.add_argument("--all_splits", action="store_true", help="training records from the test users too")
    parser.add_max_bad_ratio()


class Run:
    """One run over the inputs: what is made, and the counters that end in the manifest."""

    def __init__(
        self,
        tasks: Sequence[Task],
        args: argparse.Namespace,
        benchmark: bool = False,
        test_split: int = TEST_SPLIT,
    ) -> None:
        self.args, self.tasks = args, list(tasks)
        self.manifest = Manifest("onerec_data", args)
        self.layout: Layout = load_layout(args.layout)
        self.bench_folder = args.output_dir / "benchmark_data"
        user_tasks = [task.name for task in tasks if task.over == "users"]
        if (benchmark or user_tasks) and args.input is None:
            raise InputError("--input", "is missing", "give the users' table")
        names = (
            bench.user_tasks(available_parts(args.input, self.layout), bool(args.product_pid2sid)) if benchmark else []
        )
        self.plan = make_plan(user_tasks, names, args.all_splits, test_split)
        self.benchmark = benchmark
        self._check_arguments()
        tables = (args.pid2sid, args.product_pid2sid, args.caption, args.seed, self.layout)
        self._tables, self.context = tables, load_context(*tables)
        if self.context.tags is None and any(task.tags for task in tasks):
            raise InputError(args.caption or "--caption", "has no column tags", "give items tags (data/README.md)")

    def _check_arguments(self) -> None:
        args, tasks = self.args, [*self.tasks, *self.plan.bench.values()]
        if args.caption is None and any(task.over == "items" for task in tasks):
            raise InputError("--caption", "is missing", "give pid2caption.parquet")
        if args.product_pid2sid is None and any(task.product for task in tasks):
            raise InputError("--product_pid2sid", "is missing", "give the products' pid to SID table")

    def record_path(self, name: str) -> Path:
        """Where the table of a task goes, or that of a benchmark task (``bench/<name>``)."""
        if name.startswith("bench/"):
            return bench.output_path(self.bench_folder, name.removeprefix("bench/"))
        return self.args.output_dir / f"{name}.parquet"

    @together()
    def __call__(self) -> Manifest:
        """Make every file, all or none, in one pass over the users and one over the items."""
        records = {self.record_path(task.name): SCHEMA for task in self.tasks}
        tests = bench.schemas(self.bench_folder, list(self.plan.bench)) if self.benchmark else {}
        threads = min(4, self.args.workers)
        self._note_tables()
        with (
            Outputs(records, threads=threads) as files,
            Outputs(tests, empty=False, threads=threads) as bench_files,
        ):
            if self.plan.builders:
                self._users(files, bench_files)
            if self.args.caption and (self.benchmark or any(task.over == "items" for task in self.tasks)):
                self._items(files, bench_files)
        for outputs in (files, bench_files):
            for path, rows in outputs.rows.items():
                if rows or outputs is files:
                    self.manifest.output(path, rows)
        if self.benchmark:
            args = self.args
            bench.write_catalogues(
                self.bench_folder,
                self.context,
                args.pid2sid,
                args.product_pid2sid,
                args.general_heldout,
                self.manifest,
            )
        self.manifest.write(self.args.output_dir)
        return self.manifest

    def _note_tables(self) -> None:
        for table in filter(None, (self.context.video, self.context.product)):
            bad = table.dropped.total()
            self.manifest.input(table.path, table.n_items)
            for reason, count in table.dropped.items():
                self.manifest.drop(reason, count)
            self.manifest.check_bad_ratio(table.path, bad, table.n_items + bad, self.args.max_bad_ratio)

    def _users(self, files: Outputs, bench_files: Outputs) -> None:
        builders = self.plan.builders
        required = dict.fromkeys(part for task in builders for part in task.required)
        optional = dict.fromkeys(part for task in builders for part in task.optional)
        users = Users(self.args.input, [*required], [*optional], self.layout)
        total = Built()
        batches = progress(users, "users", users.rows, "user", size=lambda data: data.num_rows)
        for built in build_all(batches, self.plan, self.context, self._tables, self.args.workers):
            for name, table in built.tables.items():
                (bench_files if name.startswith("bench/") else files).add(self.record_path(name), table)
            total.count(built)
        users.note(self.manifest, total, self.args.max_bad_ratio)

    def _items(self, files: Outputs, bench_files: Outputs) -> None:
        tasks = [task for task in self.tasks if task.over == "items"]
        captions = Captions(self.args.caption, self.layout)
        every, seen = max(1, captions.rows // bench.N_ITEM_TEST), 0
        batches = progress(captions, "captions", captions.rows, "item", size=lambda pair: len(pair[0]))
        for pids, texts in batches:
            built = build_items(pids, texts, tasks, self.context)
            for name, table in built.tables.items():
                files.add(self.record_path(name), table)
            for reason, count in built.counts.items():
                self.manifest.drop(reason, count)
            if self.benchmark:
                chosen = slice(-seen % every, None, every)
                bench_files.add(
                    self.record_path("bench/item_understand"), self._item_tests(pids[chosen], texts[chosen])
                )
            seen += len(pids)
        for reason, count in captions.counts.items():
            self.manifest.drop(reason, count)
        self.manifest.input(self.args.caption, captions.rows)

    def _item_tests(self, pids: Sequence[int], texts: Sequence[str]):
        task = TASKS[SFT_TASK["item_understand"]]
        return bench_table("item_understand", task, list(task.build(pids, texts, self.context)))


def report(manifest: Manifest) -> None:
    """Print rows by output and what was left out."""
    for path, rows in manifest.outputs.items():
        print(f"{rows:>9,} rows  {path}")
    print(
        f"{sum(rows or 0 for rows in manifest.outputs.values()):,} rows in {len(manifest.outputs)} files; {manifest.dropped_text()}"
    )


def run_task(task: Task, argv: Sequence[str] | None = None) -> None:
    """The command line of one task's script."""

    def main() -> None:
        parser = ArgumentParser(f"Make {task.name}.parquet ({task.source}).")
        add_arguments(parser)
        args = parser.parse_args(argv)
        report(Run([TASKS[task.name]], args)())

    cli(main)()


def default_tasks(args: argparse.Namespace) -> list[Task]:
    """Every task that the input has what it takes for; says on the way which have to be left out."""
    if args.input is None:
        raise InputError("--input", "is missing", "give the users' table")
    layout = load_layout(args.layout)
    parts, chosen = available_parts(args.input, layout) | set(VIDEO_COLUMNS), []
    for task in TASKS.values():
        lacking = task.lacking(parts)
        lacking += ["--product_pid2sid"] if task.product and args.product_pid2sid is None else []
        lacking += ["--caption"] if task.over == "items" and args.caption is None else []
        if not task.default or task.name in args.skip:
            continue
        if lacking:
            print(f"left out: {task.name} (the input has no {', '.join(lacking)})")
        else:
            chosen.append(task)
    return chosen


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add_arguments(parser)
    parser.add_argument(
        "--tasks",
        nargs="*",
        metavar="TASK",
        help=f"exactly these, of {', '.join(TASKS)}; default: all that the input allows",
    )
    parser.add_argument("--also", nargs="*", default=[], metavar="TASK", help="these beside the default ones")
    parser.add_argument("--skip", nargs="*", default=[], metavar="TASK", help="these not")
    parser.add_argument(
        "--benchmark", type=integer(0, 1), default=1, help="1: also the benchmark's files from the test rows"
    )
    parser.add_argument(
        "--benchmark_split",
        type=integer(1, 2),
        default=TEST_SPLIT,
        help="the split that the benchmark's files ask about: 1 test, 2 validation",
    )
    parser.add_argument("--general_heldout", type=Path, help="folder of held-out general text to put beside the tasks")
    args = parser.parse_args(argv)
    for name in [*(args.tasks or []), *args.also, *args.skip]:
        if name not in TASKS:
            raise InputError("--tasks", f"{name} is not a task", f"one of {', '.join(TASKS)}")
    chosen = default_tasks(args) if args.tasks is None else [TASKS[name] for name in args.tasks]
    chosen = list(dict.fromkeys([*chosen, *(TASKS[name] for name in args.also)]))
    with locked(args.output_dir):
        report(Run(chosen, args, bool(args.benchmark), args.benchmark_split)())


if __name__ == "__main__":
    cli(main)()
