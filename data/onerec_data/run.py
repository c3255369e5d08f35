"""Run the RecIF tasks over a release: every input is read once, for all the tasks that are switched on.

    python data/onerec_data/run.py --input raw_data/onerec_data/onerec_bench_release.parquet \\
        --pid2sid raw_data/onerec_data/video_ad_pid2sid.parquet --product_pid2sid raw_data/onerec_data/product_pid2sid.parquet \\
        --caption raw_data/onerec_data/pid2caption.parquet --output_dir output

Writes <output_dir>/<task>.parquet for each task (pretrain_video_rec, sft_video_rec, …) in the record format, the
benchmark's test files from the split=1 rows into <output_dir>/benchmark_data, and manifest.json.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.onerec_data.context import Context, load_context
from data.onerec_data.tasks import Task
from onerec.errors import InputError, cli
from onerec.parquet import count_rows, iter_batches, open_parquet
from onerec.records import SCHEMA, Record
from onerec.run import Manifest, atomic_path, progress

_ROWS_PER_GROUP = 4096
TRAIN_SPLIT = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that every task's script and the whole run share."""
    parser.add_argument(
        "--input", type=Path, help="release table: one row a user (onerec_bench_release.parquet)"
    )
    parser.add_argument("--pid2sid", type=Path, required=True, help="pid to SID of videos and ads")
    parser.add_argument("--product_pid2sid", type=Path, help="pid to SID of products")
    parser.add_argument("--caption", type=Path, help="pid2caption.parquet (pid, dense_caption or caption)")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for <task>.parquet")
    parser.add_argument("--seed", type=int, default=42, help="seed of every draw")
    parser.add_argument("--all_splits", action="store_true", help="training records from the test users too")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )


class TaskFiles:
    """One open Parquet file a task, all renamed to their names together when the run ends well."""

    def __init__(self, stack: contextlib.ExitStack, output_dir: Path, names: Sequence[str]) -> None:
        self.paths = {name: output_dir / f"{name}.parquet" for name in names}
        self._buffers: dict[str, list[Record]] = {name: [] for name in names}
        self.rows = dict.fromkeys(names, 0)
        self._writers = {}
        for name, path in self.paths.items():
            temporary = stack.enter_context(atomic_path(path))
            self._writers[name] = stack.enter_context(pq.ParquetWriter(temporary, SCHEMA, compression="zstd"))

    def add(self, name: str, record: Record) -> None:
        """Add a record to a task's file."""
        buffer = self._buffers[name]
        buffer.append(record)
        self.rows[name] += 1
        if len(buffer) == _ROWS_PER_GROUP:
            self._flush(name)

    def finish(self) -> None:
        """Write what is still buffered."""
        for name in self._buffers:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._buffers[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._buffers[name], schema=SCHEMA))
            self._buffers[name] = []


def user_rows(path: Path, tasks: Sequence[Task], context: Context) -> Iterator[dict[str, Any]]:
    """Users as dicts with the columns that ``tasks`` need; uid and split checked, bad rows counted, doubles dropped."""
    required = ["uid", *dict.fromkeys(column for task in tasks for column in task.required)]
    optional = [
        "split",
        *dict.fromkeys(column for task in tasks for column in task.optional if column not in required),
    ]
    _check_types(path, required, optional)
    seen: set[tuple[int, int]] = set()
    batches = iter_batches(path, required, optional, batch_size=1024)
    total = count_rows(path)
    if total == 0:
        raise InputError(path, "is an empty table", "give at least one user")
    for batch in progress(batches, "users", total, "user", size=lambda b: b.num_rows):
        for row in batch.to_pylist():
            if row["uid"] is None:
                context.bad("users", "uid is null")
                continue
            row["split"] = row.get("split") or 0
            if (row["uid"], row["split"]) in seen:
                context.bad("users", "uid stands twice in a split")
                continue
            seen.add((row["uid"], row["split"]))
            yield row
    context.manifest.input(path, total)


def _check_types(path: Path, required: Sequence[str], optional: Sequence[str]) -> None:
    schema = open_parquet(path, required).schema_arrow
    for name in [*required, *optional]:
        if name in schema.names and name.startswith(("hist_", "target_video", "target_ad", "target_goods")):
            kind = schema.field(name).type
            inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
            if inner is kind or not (
                pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_null(inner)
            ):
                raise InputError(path, f"column {name} is {kind}", "a list of integers is wanted")
        if name == "uid" and not pa.types.is_integer(schema.field(name).type):
            raise InputError(path, f"column uid is {schema.field(name).type}", "integers are wanted")


def run(tasks: Sequence[Task], args: argparse.Namespace, benchmark: bool = False) -> Manifest:
    """Build every task's file (and the benchmark's) in one pass over the users and one over the items."""
    from data.onerec_data.bench import Benchmark

    manifest = Manifest("onerec_data", args)
    needs_users = benchmark or any(task.over == "users" for task in tasks)
    if needs_users and args.input is None:
        raise InputError("--input", "is missing", "give the release table")
    if args.caption is None and any(task.over == "items" for task in tasks):
        raise InputError("--caption", "is missing", "give pid2caption.parquet")
    if args.product_pid2sid is None and any(task.product for task in tasks):
        raise InputError("--product_pid2sid", "is missing", "give the products' pid to SID table")
    context = load_context(args.pid2sid, args.product_pid2sid, args.caption, args.seed, manifest)
    with contextlib.ExitStack() as stack:
        files = TaskFiles(stack, args.output_dir, [task.name for task in tasks])
        bench = Benchmark(args.output_dir / "benchmark_data", context) if benchmark else None
        user_tasks = [task for task in tasks if task.over == "users"]
        users = 0
        if needs_users:
            wanted = [*user_tasks, *(bench.tasks if bench else [])]
            for row in user_rows(args.input, wanted, context):
                users += 1
                if row["split"] == TRAIN_SPLIT or args.all_splits:
                    for task in user_tasks:
                        for record in task.records(row, context):
                            files.add(task.name, record)
                if bench:
                    bench.add(row)
        for task in (task for task in tasks if task.over == "items"):
            for pid, caption in sorted(context.captions.items()):
                for record in task.records({"pid": pid, "caption": caption}, context):
                    files.add(task.name, record)
        manifest.check_bad_ratio(args.input or args.caption, context.bad_rows, users, args.max_bad_ratio)
        files.finish()
        if bench:
            bench.write(manifest, args)
    for name, path in files.paths.items():
        manifest.output(path, files.rows[name])
    return manifest


def report(manifest: Manifest, output_dir: Path) -> None:
    """Print rows by output and what was left out; write the manifest."""
    for path, rows in manifest.outputs.items():
        print(f"{rows:>9,} rows  {path}")
    manifest.write(output_dir)
    print(
        f"{sum(rows or 0 for rows in manifest.outputs.values()):,} rows in {len(manifest.outputs)} files; {manifest.dropped_text()}"
    )


def run_task(task: Task, argv: Sequence[str] | None = None) -> None:
    """The command line of one task's script."""

    def main() -> None:
        parser = argparse.ArgumentParser(description=f"Make {task.name}.parquet ({task.source}).")
        add_arguments(parser)
        args = parser.parse_args(argv)
        report(run([task], args), args.output_dir)

    cli(main)()


def main(argv: Sequence[str] | None = None) -> None:
    from data.onerec_data.registry import TASKS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--tasks", nargs="*", default=list(TASKS), metavar="TASK", help=f"of {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--benchmark", type=int, default=1, help="1: also the benchmark's files from the split=1 rows"
    )
    parser.add_argument(
        "--general_heldout", type=Path, help="folder of held-out general text to put beside the tasks"
    )
    args = parser.parse_args(argv)
    for name in args.tasks:
        if name not in TASKS:
            raise InputError("--tasks", f"{name} is not a task", f"one of {', '.join(TASKS)}")
    report(run([TASKS[name] for name in args.tasks], args, bool(args.benchmark)), args.output_dir)


if __name__ == "__main__":
    cli(main)()
