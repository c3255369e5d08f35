"""A results folder while its tasks are measured; evaluate.py and baselines.py write it alike."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks.catalogues import BenchData
from benchmarks.evaluators.base import Result
from benchmarks.intervals import values_and_intervals
from benchmarks.results import METRICS, Metrics, result_folder
from benchmarks.tasks import fingerprint
from onerec.prompts import Words
from onerec.run import Manifest, write_json, write_text


class Output:
    """``results_<name>/``: predictions and scores are written task by task, metrics.json at the end.

    ``args``: output_dir, data_dir, data_version, bootstrap and seed. ``parts`` of metrics.json are there though empty.
    """

    def __init__(self, args: argparse.Namespace, name: str, manifest: Manifest, parts: Sequence[str] = ()) -> None:
        self.args, self.name, self.manifest = args, name, manifest
        self.data = BenchData(args.data_dir)
        self.folder = result_folder(args.output_dir, name)
        self.metrics: Metrics = {}
        self.extra: dict[str, Any] = {"data": {"version": args.data_version, "tests": {}}, "intervals": {}}
        self.extra |= {part: {} for part in parts}
        if noun := Words.of_folder(args.data_dir).noun:
            self.extra["data"]["noun"] = noun

    def predictions(self, task: str, lines: Sequence[dict[str, Any]]) -> None:
        """Write a task's predictions, with users' and items' own ids.

        Metrics of a run before this one go: they are not of these predictions, and a kill may leave the two together.
        """
        (self.folder / METRICS).unlink(missing_ok=True)
        lines = [self.data.own_ids(line, task) for line in lines]
        path = self.folder / f"predictions_{task}.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.manifest.output(path, len(lines))

    def add(self, task: str, result: Result) -> dict[str, float]:
        """Write a task's scores; its metrics, which are kept."""
        self.manifest.output(result.scores.save(self.folder, task), len(result.scores.uuids))
        values, intervals = values_and_intervals(result.metrics, result.scores, self.args.bootstrap, self.args.seed)
        self.metrics[task] = values | result.figures
        self.extra["intervals"][task] = intervals
        self.extra["data"]["tests"][task] = fingerprint(self.args.data_dir, task)
        for part, value in result.notes.items():
            self.extra.setdefault(part, {})[task] = value
        return self.metrics[task]

    def save(self, config: dict[str, Any]) -> None:
        """Write metrics.json and the manifest.

        ``{"name", "config", "tasks": {task: {metric: value}}, "data": {"version", "tests": {task: fingerprint}, "noun":
        what the data call an item, where they do}, "intervals": {task: {metric: [low, high]}}}``, and the parts.
        """
        tasks = {task: {key: round(value, 6) for key, value in values.items()} for task, values in self.metrics.items()}
        texts = {key: str(value) for key, value in config.items()}
        write_json(self.folder / METRICS, {"name": self.name, "config": texts, "tasks": tasks, **self.extra})
        self.manifest.output(self.folder / METRICS)
        self.manifest.write(self.folder)
