"""Run the RecIF tasks over a release: every input is read once, for all the tasks that are switched on.

    python data/onerec_data/run.py --input raw_data/onerec_data/onerec_bench_release.parquet \\
        --pid2sid raw_data/onerec_data/video_ad_pid2sid.parquet \\
        --product_pid2sid raw_data/onerec_data/product_pid2sid.parquet \\
        --caption raw_data/onerec_data/pid2caption.parquet --output_dir output

Writes <output_dir>/<task>.parquet for each task (pretrain_video_rec, sft_video_rec, …) in the record format, the
benchmark's test files from the split=1 rows into <output_dir>/benchmark_data, and manifest.json. Users pass in batches;
only their keys stay in memory, to leave doubles out. Logs of your own: --layout my_layout.json (see layouts/). English,
about products: --prompts en --noun product.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.onerec_data import bench, build, leaks
from data.onerec_data.batch import TEST_SPLIT
from data.onerec_data.builders import BUILDERS
from data.onerec_data.layout import load_layout
from data.onerec_data.samples import VIDEO_COLUMNS
from data.onerec_data.tables import load_context
from data.onerec_data.users import Captions, Users, available_parts
from data.onerec_data.wording import add_prompts, load_prompts
from data.outputs import Outputs
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import PROCESSES, RAY, SEED, ArgumentParser, integer
from onerec.folders import locked, together
from onerec.records import SCHEMA
from onerec.run import Manifest, progress
from onerec.tasks import PRODUCT, TASKS, VIDEO_AD, Task


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that every task's script and the whole run share."""
    add = parser.add_argument
    add("--input", type=Path, help="users: a Parquet file, a folder of them or a pattern (one row a user)")
    add("--pid2sid", type=Path, required=True, help="pid to SID of videos and ads")
    add("--product_pid2sid", type=Path, help="pid to SID of products")
    add("--caption", type=Path, help="pid2caption.parquet (pid, dense_caption or caption, tags)")
    add("--output_dir", type=Path, required=True, help="folder for <task>.parquet")
    add("--layout", default="release", help="release, simple, or a JSON file: which column plays which part")
    add_prompts(parser)
    add("--seed", type=SEED, default=42, help="seed of every draw")
    add("--workers", type=PROCESSES, help="processes that build records (1; --runner ray: all cores of the cluster)")
    parser.add_runner()
    add("--all_splits", action="store_true", help="training records from the test users too")
    parser.add_max_bad_ratio()


class Run:
    """One run over the inputs: what is made, and the counters that end in the manifest."""

    def __init__(
        self, tasks: Sequence[Task], args: argparse.Namespace, benchmark: bool = False, test_split: int = TEST_SPLIT
    ) -> None:
        self.args, self.tasks, self.benchmark = args, list(tasks), benchmark
        self.manifest, self.layout = Manifest("onerec_data", args), load_layout(args.layout)
        self.item_tasks = [task for task in tasks if BUILDERS[task.name].over == "items"]
        user_tasks = tuple(task for task in tasks if task not in self.item_tasks)
        if (benchmark or user_tasks) and args.input is None:
            raise InputError("--input", "is missing", "give the users' table")
        products = args.product_pid2sid is not None
        tests = bench.user_tasks(available_parts(args.input, self.layout), products) if benchmark else ()
        self.plan = build.Plan(user_tasks, tests, args.all_splits, test_split)
        if args.caption is None and self.item_tasks:
            raise InputError("--caption", "is missing", "give pid2caption.parquet")
        if not products and any(task.catalogue == PRODUCT for task in tasks):
            raise InputError("--product_pid2sid", "is missing", "give the products' pid to SID table")
        prompts = load_prompts(args.prompts, args.noun)
        self.manifest.extra["prompts"] = dataclasses.asdict(prompts.words)
        self._tables = (args.pid2sid, args.product_pid2sid, args.caption, args.seed, self.layout, prompts)
        self.context = load_context(*self._tables)
        if self.context.tags is None and any(BUILDERS[task.name].tags for task in tasks):
            right = "give items tags (data/onerec_data/layouts/README.md)"
            raise InputError(args.caption or "--caption", "has no column tags", right)

    @together()
    def __call__(self) -> Manifest:
        """Make every file, all or none, in one pass over the users and one over the items."""
        args, manifest, folder = self.args, self.manifest, self.args.output_dir
        tests = bench.schemas(self.plan.bench) if self.benchmark else {}
        schemas = {**{task.file: SCHEMA for task in self.tasks}, **tests}
        self._note_tables()
        files = {folder / name: schema for name, schema in schemas.items()}
        threads = 4 if args.runner == RAY else min(4, args.workers or 1)
        with Outputs(files, [folder / name for name in tests], threads) as outputs:
            if self.plan.every:
                self._users(outputs)
            if args.caption and (self.benchmark or self.item_tasks):
                self._items(outputs)
        manifest.outputs = outputs.made()
        if self.benchmark:
            tables = {VIDEO_AD: args.pid2sid, PRODUCT: args.product_pid2sid}
            bench.write_catalogues(folder / build.BENCH_FOLDER, self.context, tables, args.general_heldout, manifest)
        manifest.write(folder)
        return manifest

    def _add(self, built: build.Built, outputs: Outputs) -> None:
        for name, table in built.tables.items():
            outputs.add(self.args.output_dir / name, table)

    def _note_tables(self) -> None:
        for table in filter(None, (self.context.video, self.context.product)):
            bad = table.dropped.total()
            self.manifest.input(table.path, table.n_items)
            self.manifest.dropped += table.dropped
            self.manifest.check_bad_ratio(table.path, bad, table.n_items + bad, self.args.max_bad_ratio)

    def _users(self, outputs: Outputs) -> None:
        builders = [BUILDERS[task.name] for task in self.plan.every]
        required = [part for each in builders for part in each.required]
        optional = [part for each in builders for part in each.optional]
        users = Users(self.args.input, required, optional, self.layout)
        total = build.Built()
        batches = progress(users, "users", users.rows, "user", size=lambda data: data.num_rows)
        more = (self._tables, self.args.workers, self.args.runner)
        for built in build.build_all(batches, self.plan, self.context, *more):
            self._add(built, outputs)
            total.count(built)
        users.note(self.manifest, total, self.args.max_bad_ratio)

    def _items(self, outputs: Outputs) -> None:
        captions, seen = Captions(self.args.caption, self.layout), 0
        step, tests = max(1, captions.rows // bench.N_ITEM_TESTS), bench.ITEM_TESTS if self.benchmark else ()
        batches = progress(captions, "captions", captions.rows, "item", size=lambda pair: len(pair[0]))
        for pids, texts in batches:
            built = build.build_items(self.item_tasks, pids, texts, self.context)
            chosen = slice(-seen % step, None, step)
            for task in tests:
                samples = build.item_samples(task, pids[chosen], texts[chosen], self.context)
                built.tables[build.bench_file(task)] = build.bench_table(task, samples)
            self._add(built, outputs)
            self.manifest.dropped += built.counts
            seen += len(pids)
        self.manifest.dropped += captions.counts
        self.manifest.input(self.args.caption, captions.rows)


def report(manifest: Manifest) -> None:
    """Print rows by output and what was left out."""
    for path, rows in manifest.outputs.items():
        print(f"{rows:>9,} rows  {path}")
    total = sum(rows or 0 for rows in manifest.outputs.values())
    print(f"{total:,} rows in {len(manifest.outputs)} files; {manifest.dropped_text()}")


def run_task(name: str) -> None:
    """The command line of one task's script."""

    def main() -> None:
        parser = ArgumentParser(f"Make {TASKS[name].file} ({TASKS[name].source}): {BUILDERS[name].build.__doc__}")
        add_arguments(parser)
        report(Run([TASKS[name]], parser.parse_args())())

    cli(main)()


def default_tasks(args: argparse.Namespace) -> list[Task]:
    """Every task that the input has what it takes for; says on the way which have to be left out."""
    if args.input is None:
        raise InputError("--input", "is missing", "give the users' table")
    parts, chosen = available_parts(args.input, load_layout(args.layout)) | set(VIDEO_COLUMNS), []
    for task in TASKS.values():
        lacking = BUILDERS[task.name].lacking(parts)
        lacking += ["--product_pid2sid"] if task.catalogue == PRODUCT and args.product_pid2sid is None else []
        lacking += ["--caption"] if BUILDERS[task.name].over == "items" and args.caption is None else []
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
    add = parser.add_argument
    every = f"exactly these, of {', '.join(TASKS)}; default: all that the input allows"
    add("--tasks", nargs="*", metavar="TASK", help=every)
    add("--also", nargs="*", default=[], metavar="TASK", help="these beside the default ones")
    add("--skip", nargs="*", default=[], metavar="TASK", help="these not")
    add("--benchmark", type=integer(0, 1), default=1, help="1: also the benchmark's files from the test rows")
    split = "the split that the benchmark's files ask about: 1 test, 2 validation"
    add("--benchmark_split", type=integer(1, 2), default=TEST_SPLIT, help=split)
    add("--general_heldout", type=Path, help="folder of held-out general text to put beside the tasks")
    args = parser.parse_args(argv)
    for name in [*(args.tasks or []), *args.also, *args.skip]:
        if name not in TASKS:
            raise InputError("--tasks", f"{name} is not a task", f"one of {', '.join(TASKS)}")
    chosen = default_tasks(args) if args.tasks is None else [TASKS[name] for name in args.tasks]
    chosen = list(dict.fromkeys([*chosen, *(TASKS[name] for name in args.also)]))
    with locked(args.output_dir):
        run = Run(chosen, args, bool(args.benchmark), args.benchmark_split)
        manifest = run()
        leaks.warn_of_seen(args.output_dir, run.plan.bench, manifest)
        report(manifest)


if __name__ == "__main__":
    cli(main)()
