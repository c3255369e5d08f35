"""The results of several models side by side: terminal table, Markdown, JSON and one self-contained HTML page.

    python report.py --results results/v1.0/results_base results/v1.0/results_sft --labels "base LLM" "SFT" \\
        --baselines results/v1.0/results_popularity results/v1.0/results_cooccurrence \\
        --train_logs "stage 2=../pretrain/output/stg2/train_log.jsonl" --output_dir report
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import load_metrics
from benchmarks.tasks import GENERAL, TASKS
from onerec.errors import InputError, cli
from onerec.run import Manifest, write_json, write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")
# Columns of the table: task, metric, heading, and whether more is better.
COLUMNS = [
    *(
        (name, task.headline, f"{name} {'R@10' if task.kind == 'rank' else 'AUC'}", True)
        for name, task in TASKS.items()
    ),
    ("video", "ndcg@10", "video NDCG@10", True),
    ("video", "pass@1", "video Pass@1", True),
    (GENERAL, "exact_match", "general EM", True),
    (GENERAL, "bits_per_byte", "bits/byte ↓", False),
]
CURVES = (("loss", "loss"), ("itemic_loss", "itemic tokens"), ("text_loss", "text tokens"))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--results", nargs="+", type=Path, required=True, help="results_<name> folders, in the chain's order"
    )
    parser.add_argument(
        "--labels", nargs="+", default=None, help="a name for each result (default: as evaluated)"
    )
    parser.add_argument(
        "--baselines", nargs="*", type=Path, default=[], help="results_<name> folders of baselines"
    )
    parser.add_argument(
        "--train_logs", nargs="*", default=[], metavar="NAME=FILE", help="train_log.jsonl of each training"
    )
    parser.add_argument("--title", default="OneRec factory", help="heading of the page")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for report.md, report.json, report.html"
    )
    return parser.parse_args(argv)


def read_rows(folders: Sequence[Path], labels: Sequence[str] | None, kind: str) -> list[dict[str, Any]]:
    """One row a result: its label, its kind (stage or baseline) and its metrics by task."""
    values = [load_metrics(folder) for folder in folders]
    names = labels or [value["name"] for value in values]
    return [
        {"label": name, "kind": kind, "tasks": value["tasks"]}
        for name, value in zip(names, values, strict=True)
    ]


def cell(row: dict[str, Any], task: str, metric: str) -> float | None:
    """A metric of a row, None where it was not measured."""
    value = row["tasks"].get(task, {}).get(metric)
    return None if value is None or math.isnan(value) else value


def used_columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str, bool]]:
    """The columns that at least one row has."""
    return [column for column in COLUMNS if any(cell(row, column[0], column[1]) is not None for row in rows)]


def text_of(value: float | None) -> str:
    """Four digits after the point, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Stages and baselines by metric; the best of each column in bold."""
    columns = used_columns(rows)
    lines = ["| stage | " + " | ".join(heading for *_, heading, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    best = [best_value(rows, column) for column in columns]
    for row in rows:
        cells = []
        for (task, metric, *_), top in zip(columns, best, strict=True):
            value = cell(row, task, metric)
            cells.append(f"**{text_of(value)}**" if value is not None and value == top else text_of(value))
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best_value(rows: Sequence[dict[str, Any]], column: tuple[str, str, str, bool]) -> float | None:
    """The best value of a column over all rows."""
    values = [v for row in rows if (v := cell(row, column[0], column[1])) is not None]
    return (max if column[3] else min)(values) if values else None


def terminal_table(rows: Sequence[dict[str, Any]]) -> str:
    """The same table in aligned columns."""
    columns = used_columns(rows)
    grid = [["stage", *(heading for *_, heading, _ in columns)]]
    grid += [
        [row["label"], *(text_of(cell(row, task, metric)) for task, metric, *_ in columns)] for row in rows
    ]
    widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
    out = [
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w)
            for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in grid
    ]
    return "\n".join([out[0], "-" * len(out[0]), *out[1:]])


def change_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each stage gained and lost against the one before it, for the headline metrics."""
    lines = []
    stages = [row for row in rows if row["kind"] == "stage"]
    for before, after in itertools.pairwise(stages):
        parts = []
        for task, metric, heading, _ in [
            c
            for c in COLUMNS
            if c[0] in ("video", GENERAL) and c[1] in ("recall@10", "exact_match", "bits_per_byte")
        ]:
            old, new = cell(before, task, metric), cell(after, task, metric)
            if old is not None and new is not None:
                parts.append(f"{heading} {old:.4f} → {new:.4f} ({new - old:+.4f})")
        if parts:
            lines.append(f"{before['label']} → {after['label']}: " + "; ".join(parts))
    return lines


def ratio_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The last stage over the better baseline, by ranking task."""
    stages, baselines = ([row for row in rows if row["kind"] == kind] for kind in ("stage", "baseline"))
    lines = []
    for name, task in TASKS.items():
        top = max((v for row in baselines if (v := cell(row, name, task.headline)) is not None), default=None)
        value = cell(stages[-1], name, task.headline) if stages else None
        if top and value is not None:
            lines.append(
                f"{name}: {task.headline} {value:.4f}, {value / top:.2f} times the better baseline ({top:.4f})"
            )
    return lines


def read_curves(specs: Sequence[str]) -> list[dict[str, Any]]:
    """``NAME=FILE`` to a name and its log lines ({"step", "loss", …})."""
    curves = []
    for spec in specs:
        name, sign, path = spec.partition("=")
        if not sign:
            raise InputError("--train_logs", f"{spec} has no =", "NAME=train_log.jsonl")
        try:
            text = Path(path).read_text(encoding="utf-8")
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        except FileNotFoundError:
            raise InputError(path, "no such file", "give the train_log.jsonl of a training") from None
        except json.JSONDecodeError:
            raise InputError(path, "is not JSON lines", "give the train_log.jsonl of a training") from None
        curves.append({"name": name, "lines": lines})
    return curves


def html_page(title: str, rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]]) -> str:
    """The self-contained page."""
    from jinja2 import Environment, FileSystemLoader

    from onerec.charts import PAGE_CSS, bar_chart, line_chart

    columns = used_columns(rows)
    best = [best_value(rows, column) for column in columns]
    table = [
        {
            "label": row["label"],
            "kind": row["kind"],
            "cells": [
                {"text": text_of(v := cell(row, task, metric)), "best": v is not None and v == top}
                for (task, metric, *_), top in zip(columns, best, strict=True)
            ],
        }
        for row in rows
    ]
    bars = [
        {
            "heading": heading,
            "svg": bar_chart(
                [
                    (r["label"], cell(r, task, metric), r["kind"])
                    for r in rows
                    if cell(r, task, metric) is not None
                ]
            ),
        }
        for task, metric, heading, _ in columns
    ]
    lines = [
        {
            "heading": curve["name"],
            "svg": line_chart(
                [
                    (label, [(x["step"], x[key]) for x in curve["lines"] if x.get(key) is not None])
                    for key, label in CURVES
                ]
            ),
        }
        for curve in curves
        if curve["lines"]
    ]
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True)
    return environment.get_template(TEMPLATE.name).render(
        title=title, style=PAGE_CSS.read_text(encoding="utf-8"), headings=[heading for *_, heading, _ in columns], table=table, bars=bars, lines=lines,
        changes=change_lines(rows), ratios=ratio_lines(rows),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.labels and len(args.labels) != len(args.results):
        raise InputError(
            "--labels", f"are {len(args.labels)} for {len(args.results)} results", "one a result"
        )
    manifest = Manifest("report", args)
    rows = [*read_rows(args.results, args.labels, "stage"), *read_rows(args.baselines, None, "baseline")]
    curves = read_curves(args.train_logs)
    notes = [*ratio_lines(rows), *change_lines(rows)]
    markdown = f"# {args.title}\n\n{markdown_table(rows)}\n\n" + "".join(f"- {note}\n" for note in notes)
    write_text(args.output_dir / "report.md", markdown)
    write_json(args.output_dir / "report.json", {"title": args.title, "rows": rows})
    write_text(args.output_dir / "report.html", html_page(args.title, rows, curves))
    for name in ("report.md", "report.json", "report.html"):
        manifest.output(args.output_dir / name)
    manifest.write(args.output_dir)
    print(terminal_table(rows))
    print()
    for note in notes:
        print(note)
    print(f"report in {args.output_dir}: report.md, report.json, report.html")


if __name__ == "__main__":
    cli(main)()
