"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.reporting.compare import HEADINGS, Comparison
from benchmarks.reporting.examples import Reading
from benchmarks.reporting.rows import Row, columns, span_of, text_of
from benchmarks.tasks import task_of

TEMPLATE = Path(__file__).parent.with_name("report.html.j2")
STYLE = Path(__file__).parent.with_name("report.css")
CURVES = (("loss", "loss"), ("itemic_loss", "itemic tokens"), ("text_loss", "text tokens"))


def _bars(rows: Sequence[Row]) -> list[dict[str, str]]:
    from onerec.pages import bar_chart

    found = []
    for c in columns(rows):
        values = [(r.label, v, r.kind) for r in rows if (v := r.cell(c.task, c.metric)) is not None]
        found.append({"heading": c.heading, "svg": bar_chart(values)})
    return found


def _curves(curves: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    from onerec.pages import line_chart

    found = []
    for curve in curves:
        series = [
            (label, [(x["step"], x[key]) for x in curve["lines"] if x.get(key) is not None]) for key, label in CURVES
        ]
        if curve["lines"]:
            found.append({"heading": curve["name"], "svg": line_chart(series)})
    return found


def beam_charts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Recall against beam width, one chart a result that measured it."""
    from onerec.pages import line_chart

    found = []
    for row in rows:
        for k in (10, 32):
            series = [
                (task, [(p["width"], p[f"recall@{k}"]) for p in sorted(points, key=lambda p: p["width"])])
                for task, points in row.value.get("beams", {}).items()
            ]
            if any(points for _, points in series):
                chart = line_chart(series, x_label="beams", marks=True)
                found.append({"heading": f"{row.label}: recall@{k}", "svg": chart})
    return found


def _all_metrics(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One table a task: every metric of every row with its interval."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.value["tasks"]))
    found = []
    for task in tasks:
        having = [row for row in rows if task in row.value["tasks"]]
        names = list(dict.fromkeys(m for row in having for m in row.value["tasks"][task]))
        lines = [[name, *(_with_interval(row, task, name) for row in having)] for name in names if name != "samples"]
        samples = ["samples", *(f"{row.value['tasks'][task].get('samples', 0):.0f}" for row in having)]
        found.append({"heading": task, "headings": ["metric", *(r.label for r in having)], "rows": [*lines, samples]})
    return found


def _with_interval(row: Row, task: str, metric: str) -> str:
    value, interval = row.cell(task, metric), row.interval(task, metric)
    if value is None:
        return "–"
    return text_of(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _main_table(rows: Sequence[Row]) -> dict[str, Any]:
    chosen = columns(rows)
    best = [column.best(rows) for column in chosen]
    lines = [
        {
            "label": row.label,
            "kind": row.kind,
            "cells": [
                {
                    "text": text_of(v := row.cell(c.task, c.metric)),
                    "span": span_of(row.interval(c.task, c.metric)),
                    "best": v is not None and v == top,
                }
                for c, top in zip(chosen, best, strict=True)
            ],
        }
        for row in rows
    ]
    return {"headings": [c.heading for c in chosen], "rows": lines}


def html_page(
    title: str,
    rows: Sequence[Row],
    curves: Sequence[dict[str, Any]],
    stages: Sequence[Comparison],
    baselines: Sequence[Comparison],
    notes: dict[str, Sequence[str]],
    readings: Sequence[Reading],
    errors: Sequence[dict[str, Any]],
) -> str:
    """The page; ``notes`` are lists of lines by heading."""
    from jinja2 import Environment, FileSystemLoader

    from onerec.pages import PAGE_CSS

    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    style = "\n".join(path.read_text(encoding="utf-8") for path in (PAGE_CSS, STYLE))
    by_task: dict[str, list[Reading]] = {}
    for reading in readings:
        by_task.setdefault(reading.task, []).append(reading)
    return environment.get_template(TEMPLATE.name).render(
        title=title, style=style, table=_main_table(rows), notes=notes, bars=_bars(rows), curves=_curves(curves),
        beams=beam_charts(rows), comparison_headings=HEADINGS, stages=[c.cells() for c in stages],
        baselines=[c.cells() for c in baselines], metrics=_all_metrics(rows), readings=by_task,
        errors=errors, kinds={name: task_of(name).kind for name in by_task},
    )  # fmt: skip
