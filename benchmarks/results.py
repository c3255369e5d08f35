"""The results folder of one evaluated model: metrics.json, predictions and the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onerec.errors import InputError
from onerec.run import Manifest, read_json, write_json

METRICS = "metrics.json"
Metrics = dict[str, dict[str, float]]


def save_metrics(
    folder: Path, name: str, metrics: Metrics, manifest: Manifest, config: dict[str, Any] | None = None
) -> None:
    """Write ``metrics.json`` ({"name", "config", "tasks": {task: {metric: value}}}) and the manifest."""
    rounded = {
        task: {key: round(value, 6) for key, value in values.items()} for task, values in metrics.items()
    }
    write_json(folder / METRICS, {"name": name, "config": config or {}, "tasks": rounded})
    manifest.output(folder / METRICS)
    manifest.write(folder)


def load_metrics(folder: Path) -> dict[str, Any]:
    """Read a results folder's ``metrics.json``."""
    value = read_json(folder / METRICS)
    if not isinstance(value, dict) or not isinstance(value.get("tasks"), dict):
        raise InputError(folder / METRICS, "is not a result of evaluate.py", "give a results_<name> folder")
    return value
