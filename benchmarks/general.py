"""General ability of several checkpoints, each against the one before it: what a stage cost, what another brought back.

    python general.py --models base=models/base/hf sft=models/sft/hf --data_dir output/benchmark_data --output_dir out
    python general.py … --general_tasks gsm8k,mmlu      # by lm-evaluation-harness, where its data are at hand
    python general.py … --general_tasks gsm8k_local --general_data_dir data      # out of data/gsm8k/{train,test}.jsonl

Writes <output_dir>/results_<name>/ as evaluate.py does (with the harness' numbers as the task lm_eval) and
report.md, report.json and report.html. A harness task whose data are not there is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks import evaluate, report
from benchmarks.results import METRICS, load_metrics, result_folder
from benchmarks.tasks import GENERAL, choose_tasks
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT_OR_ALL, ArgumentParser
from onerec.keeper import kept, owned
from onerec.run import write_json

HARNESS = "lm_eval"
OWN_TASKS = Path(__file__).with_name("harness")
_Z = 1.96  # of a 95 % interval out of a standard error
Values = dict[str, float]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="checkpoints, in the chain's order")
    add("--data_dir", type=Path, required=True, help="benchmark_data folder with general/")
    add("--output_dir", type=Path, required=True, help="folder for results_<name>/ and the comparison")
    add("--general_tasks", default="", help="tasks of lm-evaluation-harness, with commas between")
    add(
        "--general_task_dir",
        type=Path,
        default=OWN_TASKS,
        help="folder of harness task YAMLs over local files",
    )
    add(
        "--general_data_dir",
        type=Path,
        default=Path("."),
        help="what the YAMLs' data files are relative to",
    )
    add("--sample_size", type=COUNT_OR_ALL, default=-1, help="rows a task, from the first (-1: all)")
    add("--device", default="auto", help="cpu, cuda or auto")
    return parser.parse_args(argv)


def run_harness(model: Path, task: str, args: argparse.Namespace) -> tuple[Values, dict[str, list[float]]] | str:
    """Metrics of one harness task by name and their intervals, or the reason why there are none.

    The harness runs in ``--general_data_dir``; its own progress is passed on every few seconds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", HARNESS, "--model", "hf", "--model_args", f"pretrained={model.resolve()}"]
        command += ["--tasks", task, "--output_path", name, "--include_path", str(args.general_task_dir.resolve())]
        command += ["--device", args.device] if args.device != "auto" else []
        command += ["--limit", str(args.sample_size)] if args.sample_size > 0 else []
        lines, last = [], time.monotonic()
        # In text mode a bar's carriage returns end lines too.
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        with owned(command, **pipes, cwd=args.general_data_dir) as run:
            assert run.stderr is not None
            try:
                for line in filter(None, map(str.strip, run.stderr)):
                    lines.append(line)
                    if "requests: " in line and time.monotonic() - last > 5:
                        last = time.monotonic()
                        print(f"{task}: {line}", file=sys.stderr, flush=True)
            except BaseException:
                run.terminate()  # or `Popen` waits for it
                raise
        files = sorted(folder.rglob("results_*.json"))
        if run.returncode or not files:
            return lines[-1] if lines else f"exit status {run.returncode}"
        return harness_metrics(json.loads(files[-1].read_text(encoding="utf-8")))


def harness_metrics(value: dict) -> tuple[Values, dict[str, list[float]]]:
    """``"<task> <metric>"`` to number, and to its 95 % interval, out of a result file of the harness.

    That has ``results`` by task, keys ``metric,filter`` and ``metric_stderr,filter``; intervals are normal ones of the
    standard error.
    """
    found: Values = {}
    intervals: dict[str, list[float]] = {}
    for task, metrics in value["results"].items():
        for key, number in metrics.items():
            name, _, filter_ = key.partition(",")
            if not isinstance(number, int | float) or not filter_ or name.endswith("_stderr"):
                continue
            label = f"{task} {name}" + ("" if filter_ == "none" else f" ({filter_})")
            found[label] = float(number)
            error = metrics.get(f"{name}_stderr,{filter_}")
            if isinstance(error, int | float):
                intervals[label] = [round(number - _Z * error, 6), round(number + _Z * error, 6)]
    return found, intervals


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    choose_tasks(args.data_dir, [GENERAL])
    wanted = [task for task in args.general_tasks.split(",") if task]
    for folder in (args.general_task_dir, args.general_data_dir) if wanted else ():
        if not folder.is_dir():
            raise InputError(folder, "is no folder", "task YAMLs, and what their data files are relative to")
    installed = importlib.util.find_spec(HARNESS) is not None
    if wanted and not installed:
        print(f"lm-evaluation-harness is not installed (pip install lm-eval): {', '.join(wanted)} left out")
    pairs = [model.partition("=") for model in args.models]
    if bad := [name for name, sign, _ in pairs if not sign]:
        raise InputError("--models", f"{bad[0]} has no =", "NAME=FOLDER")
    folders = []
    for name, _, path in pairs:
        flags = {"model_path": path, "result_name": name, "tasks": GENERAL}
        flags |= {key: getattr(args, key) for key in ("data_dir", "output_dir", "sample_size", "device")}
        evaluate.main([part for key, value in flags.items() for part in (f"--{key}", str(value))])
        folder = result_folder(args.output_dir, name)
        folders.append(str(folder))
        measured: Values = {}
        intervals: dict[str, list[float]] = {}
        for task in wanted if installed else []:
            result = run_harness(Path(path), task, args)
            if isinstance(result, str):
                print(f"{name}: {task} left out: {result}")
            else:
                measured |= result[0]
                intervals |= result[1]
                print(f"{name}: " + "  ".join(f"{key} {number:.4f}" for key, number in result[0].items()))
        if measured:
            value = load_metrics(folder)
            value["tasks"][HARNESS] = measured
            value["intervals"][HARNESS] = intervals
            write_json(folder / METRICS, value)
    title = "General ability, stage by stage"
    report.main(["--results", *folders, "--output_dir", str(args.output_dir), "--title", title])


if __name__ == "__main__":
    # vLLM's engine is a process that outlives a killed one.
    kept(cli(main))()
