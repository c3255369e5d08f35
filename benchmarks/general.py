"""General ability of several checkpoints, each against the one before it: what a stage cost, what another brought back.

    python general.py --models base=models/base/hf sft=models/sft/hf --data_dir output/benchmark_data --output_dir general
    python general.py … --lm_eval_tasks gsm8k,mmlu      # by lm-evaluation-harness, where its data are at hand

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
from collections.abc import Sequence
from pathlib import Path

from benchmarks import evaluate, report
from benchmarks.results import METRICS, load_metrics
from benchmarks.tasks import GENERAL, choose_tasks
from onerec.errors import InputError, cli
from onerec.run import write_json

HARNESS = "lm_eval"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME=FOLDER", help="checkpoints, in the chain's order")
    add("--data_dir", type=Path, required=True, help="benchmark_data folder with general/")
    add("--output_dir", type=Path, required=True, help="folder for results_<name>/ and the comparison")
    add("--lm_eval_tasks", default="", help="tasks of lm-evaluation-harness, with commas between")
    add("--lm_eval_task_dir", default="", help="folder of harness task YAMLs of your own")
    add("--sample_size", type=int, default=-1, help="questions and texts a task, from the first (-1: all)")
    add("--device", default="auto", help="cpu, cuda or auto")
    return parser.parse_args(argv)


def run_harness(model: Path, task: str, args: argparse.Namespace) -> dict[str, float] | str:
    """Metrics of one harness task by name, or the reason why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", HARNESS, "--model", "hf", "--model_args", f"pretrained={model}"]
        command += ["--tasks", task, "--output_path", folder]
        command += ["--device", "cuda" if args.device == "cuda" else "cpu"] if args.device != "auto" else []
        command += ["--include_path", args.lm_eval_task_dir] if args.lm_eval_task_dir else []
        command += ["--limit", str(args.sample_size)] if args.sample_size > 0 else []
        done = subprocess.run(command, capture_output=True, text=True)
        files = sorted(Path(folder).rglob("results_*.json"))
        if done.returncode or not files:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return lines[-1].strip() if lines else f"exit status {done.returncode}"
        return harness_metrics(json.loads(files[-1].read_text(encoding="utf-8")))


def harness_metrics(value: dict) -> dict[str, float]:
    """``"<task> <metric>"`` to number out of a result file of the harness (``results`` by task, keys ``metric,filter``)."""
    found = {}
    for task, metrics in value["results"].items():
        for key, number in metrics.items():
            name, _, filter_ = key.partition(",")
            if isinstance(number, int | float) and filter_ and not name.endswith("_stderr"):
                found[f"{task} {name}" + ("" if filter_ == "none" else f" ({filter_})")] = float(number)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    choose_tasks(args.data_dir, [GENERAL])
    wanted = [task for task in args.lm_eval_tasks.split(",") if task]
    installed = importlib.util.find_spec(HARNESS) is not None
    if wanted and not installed:
        print(f"lm-evaluation-harness is not installed (pip install lm-eval): {', '.join(wanted)} left out")
    pairs = [model.partition("=") for model in args.models]
    if bad := [name for name, sign, _ in pairs if not sign]:
        raise InputError("--models", f"{bad[0]} has no =", "NAME=FOLDER")
    folders = []
    for name, _, path in pairs:
        evaluate.main(
            ["--model_path", path, "--result_name", name, "--data_dir", str(args.data_dir), "--tasks", GENERAL,
             "--output_dir", str(args.output_dir), "--sample_size", str(args.sample_size), "--device", args.device]
        )  # fmt: skip
        folder = args.output_dir / f"results_{name}"
        folders.append(str(folder))
        measured: dict[str, float] = {}
        for task in wanted if installed else []:
            result = run_harness(Path(path), task, args)
            if isinstance(result, str):
                print(f"{name}: {task} left out: {result}")
            else:
                measured |= result
        if measured:
            value = load_metrics(folder)
            value["tasks"][HARNESS] = measured
            write_json(folder / METRICS, value)
    report.main(
        [
            "--results",
            *folders,
            "--output_dir",
            str(args.output_dir),
            "--title",
            "General ability, stage by stage",
        ]
    )


if __name__ == "__main__":
    cli(main)()
