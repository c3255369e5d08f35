"""One table over the seeds of a recipe: every model's mean and spread, beside what others published.

    python seeds.py --runs runs/amazon_beauty/seed0 runs/amazon_beauty/seed1 --output_dir runs/amazon_beauty

Reads the predictions of every evaluated model of every run (<run>/benchmarks/results/<version>/results_<model>/), so
that metrics at 5 are there too. Writes seeds.json and seeds.md and prints the table. A model that a run lacks is left
out of the mean, and the table says of how many seeds each row is; results of other targets are refused.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.metrics import ndcg_at_k
from benchmarks.results import check_same_data, load_metrics, load_predictions
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.ranking import recall_at_k
from onerec.run import Manifest, read_json, write_json, write_text

METRICS = {
    "recall@5": lambda ranked, answer: recall_at_k(ranked, answer, 5),
    "ndcg@5": lambda ranked, answer: ndcg_at_k(ranked, answer, 5),
    "recall@10": lambda ranked, answer: recall_at_k(ranked, answer, 10),
    "ndcg@10": lambda ranked, answer: ndcg_at_k(ranked, answer, 10),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: ``values`` by metric, one a seed; ``source`` where somebody else published them."""

    name: str
    values: dict[str, list[float]]
    users: int = 0
    source: str = ""

    def summary(self) -> dict[str, Any]:
        """The line as JSON: mean and sample standard deviation (null with one seed) of every metric."""
        stats = {
            name: {"mean": round(float(np.mean(x)), 6), "sd": spread(x), "seeds": [round(v, 6) for v in x]}
            for name, x in self.values.items()
        }
        return {"name": self.name, "users": self.users, "source": self.source, "metrics": stats}


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of one value."""
    return round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None


def measure(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Mean of every metric over the predictions of a task."""
    pairs = [(line["items"], line["answer"]) for line in lines]
    return {name: float(np.mean([metric(*pair) for pair in pairs])) for name, metric in METRICS.items()}


def measured_rows(runs: Sequence[Path], version: str, task: str) -> list[Row]:
    """A row a model, in the runs' order; raises `InputError` where there is none or runs differ in their targets."""
    found: dict[str, list[tuple[dict[str, float], int]]] = {}
    targets: dict[str, list[int]] = {}
    for run in runs:
        folders = sorted((run / "benchmarks" / "results" / version).glob("results_*"))
        # Within a run: another seed has other SIDs, hence other test files. Its targets are the same items.
        check_same_data(folders, [_only(load_metrics(folder), task) for folder in folders])
        for folder in folders:
            lines = load_predictions(folder, task)
            for line in lines:
                if targets.setdefault(line["uuid"], line["answer"]) != line["answer"]:
                    what = f"has another target of {line['uuid']} than a result before it"
                    raise InputError(folder, what, "runs on the same data")
            if lines:
                found.setdefault(folder.name.removeprefix("results_"), []).append((measure(lines), len(lines)))
    if not found:
        raise InputError(runs[0], f"has no predictions of {task}", "runs of quickstart.sh that were evaluated")
    rows = []
    for name, several in found.items():
        counts = {count for _, count in several}
        if len(counts) > 1:
            raise InputError(runs[0], f"{name} was measured on {sorted(counts)} rows", "the same rows in every run")
        values = {metric: [value[metric] for value, _ in several] for metric in METRICS}
        rows.append(Row(name, values, counts.pop()))
    return rows


def _only(metrics: dict[str, Any], task: str) -> dict[str, Any]:
    tests = metrics.get("data", {}).get("tests", {})
    return {"data": {"tests": {task: tests[task]} if task in tests else {}}}


def published_rows(path: Path, data_set: str) -> list[Row]:
    """The rows of ``published.json`` for a data set; none where it does not know it."""
    value = read_json(path)
    rows = []
    for row in value.get(data_set, []):
        values = {name: [x] for name, x in zip(value["metrics"], row["values"], strict=True)}
        rows.append(Row(row["name"], values, source=row["source"]))
    return rows


def cell(values: Sequence[float]) -> str:
    """``0.0612 ± 0.0008``, without the spread where there is one value."""
    deviation = spread(values)
    return f"{np.mean(values):.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def markdown(rows: Sequence[Row]) -> str:
    """The table; means with the sample standard deviation over the seeds."""
    head = ["model", *METRICS, "seeds", "users"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row in rows:
        cells = [cell(row.values[name]) if name in row.values else "–" for name in METRICS]
        seeds = "published" if row.source else str(len(next(iter(row.values.values()))))
        lines.append(" | ".join([row.name, *cells, seeds, f"{row.users:,}" if row.users else "–"]))
    return "".join(f"| {line} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, help="run folders, one a seed")
    add("--output_dir", type=Path, required=True, help="folder for seeds.json and seeds.md")
    add("--task", default="video", help="the ranking task")
    add("--version", default="v1.0", help="version of the results")
    add("--published", type=Path, help="JSON file of published rows (scripts/recipes/published.json)")
    add("--data_set", default="", help="which of its data sets")
    args = parser.parse_args(argv)
    manifest = Manifest("seeds", args)
    rows = measured_rows(args.runs, args.version, args.task)
    # The models by what they reach, the best last; then what others published.
    rows.sort(key=lambda row: math.fsum(row.values["ndcg@10"]) / len(row.values["ndcg@10"]))
    if args.published:
        published = published_rows(args.published, args.data_set)
        if not published:
            print(f"{args.published.name} has nothing of {args.data_set or 'a data set without a name'}")
        rows += published
    for run in args.runs:
        manifest.input(run)
    table = markdown(rows)
    write_text(args.output_dir / "seeds.md", table)
    value = {"task": args.task, "rows": [row.summary() for row in rows], "manifest": manifest.as_dict()}
    write_json(args.output_dir / "seeds.json", value)
    print(table + f"{len(args.runs)} runs; {args.output_dir / 'seeds.json'}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
