"""The results of several models side by side: terminal table, Markdown, JSON and one self-contained HTML page.

    python report.py --results results/v1.0/results_base results/v1.0/results_sft --labels "base LLM" "SFT" \\
        --baselines results/v1.0/results_popularity results/v1.0/results_cooccurrence \\
        --train_logs "stage 2=../pretrain/output/stg2/train_log.jsonl" --data_dir ../data/output/benchmark_data \\
        --titles ../raw_data/onerec_data/pid2caption.parquet --output_dir report

Examples and errors are the last result's; they need --data_dir. Titles are captions of the items' table.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.intervals import N_BOOT
from benchmarks.reporting import compare, examples
from benchmarks.reporting.page import CURVES, report_page
from benchmarks.reporting.rows import Row, markdown_table, plain_markdown, read_rows, terminal_table, title_of
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import BOOT, NUMBER, ArgumentParser
from onerec.folders import MANIFEST
from onerec.run import WARNINGS, Manifest, read_json, read_json_lines, say_warning, write_json, write_text

EXAMPLES = 2  # of a task that went well, and as many that did not


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", nargs="+", type=Path, required=True, help="results_<name> folders, in the chain's order")
    add("--labels", nargs="+", default=None, help="a name for each result (default: as evaluated)")
    add("--baselines", nargs="*", type=Path, default=[], help="results_<name> folders of baselines")
    add("--train_logs", nargs="*", default=[], metavar="NAME=FILE", help="train_log.jsonl of each training")
    add("--data_dir", type=Path, default=None, help="benchmark_data folder, for examples and errors")
    add("--titles", nargs="*", type=Path, default=[], help="pid2caption.parquet of videos and ads")
    add("--product_titles", nargs="*", type=Path, default=[], help="the same of products")
    more = "manifest.json of other stages, whose warnings are repeated"
    add("--manifests", nargs="*", type=Path, default=[], help=more)
    add("--bootstrap", type=BOOT, default=N_BOOT, help="resamples of the users for paired differences")
    add("--title", default="OneRec factory", help="heading of the page")
    add("--output_dir", type=Path, required=True, help="folder for report.md, report.json, report.html")
    return parser.parse_args(argv)


def read_curves(specs: Sequence[str]) -> list[dict[str, Any]]:
    """``NAME=FILE`` to a name and its log lines ({"step", "loss", …})."""
    curves = []
    for spec in specs:
        name, sign, path = spec.partition("=")
        if not sign:
            raise InputError("--train_logs", f"{spec} has no =", "NAME=train_log.jsonl")
        lines = read_json_lines(path, "give the train_log.jsonl of a training")
        for line in lines:
            for key in ("step", *(key for key, _ in CURVES if line.get(key) is not None)):
                NUMBER.of(line.get(key), path, key)
        curves.append({"name": name, "lines": lines})
    return curves


def noted_warnings(rows: Sequence[Row], manifests: Sequence[Path]) -> list[str]:
    """What other stages and the last model's evaluation noted in their manifests: ``stage (folder): warning``.

    Models on the way to it, such as one that has only read, may well recommend the same to everybody.
    """
    found, evaluated = [], [row.folder / MANIFEST for row in rows if row.kind == "stage"]
    for path in (*manifests, *evaluated[-1:]):
        value = read_json(path) if path.is_file() or path in manifests else {}
        found += [f"{value['stage']} ({path.parent.name}): {text}" for text in value.get(WARNINGS, [])]
    return found


def markdown(title: str, rows: Sequence[Row], notes: dict[str, list[str]], value: dict[str, Any]) -> str:
    """The report as Markdown: table, notes, paired differences, errors, examples.

    HTML and links in texts of others stay text.
    """
    parts = [f"# {title}\n\n{markdown_table(rows)}"]
    for heading, lines in notes.items():
        if lines:
            parts.append(f"## {heading}\n\n" + "\n".join(f"- {line}" for line in lines))
    for heading, found in (
        ("Paired differences: the last stage and the best baseline", value["baselines"]),
        ("Paired differences: each stage and the one before it", value["stages"]),
    ):
        if found:
            parts.append(f"## {heading}\n\n{plain_markdown(compare.HEADINGS, [c.cells() for c in found])}")
    for error in value["errors"]:
        lines = [(what, f"{share:.3f}", n) for what, share, n in error["rows"]]
        parts.append(f"## Errors: {title_of(rows, error['task'])}\n\n{plain_markdown(('what', 'share', 'of'), lines)}")
    if value["readings"]:
        parts.append(
            "## Examples\n\n" + "\n".join(_markdown_example(title_of(rows, r.task), r) for r in value["readings"])
        )
    below = re.sub("<(?=[a-zA-Z/!?])", "&lt;", "\n\n".join(parts[1:])).replace("[", "\\[")
    return f"{parts[0]}\n\n{below}\n"


def _markdown_example(title: str, r: examples.Reading) -> str:
    if not r.predicted:
        return f"- {title} ({r.note}): reference “{r.reference}”; written “{r.text}”"
    names = [f"{item.title} ✓" if item.hit else item.title for item in r.predicted]
    history = "; ".join(item.title for item in r.history)
    return f"- {title} ({r.note}): history {history}; predicted {'; '.join(names)}"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.labels and len(args.labels) != len(args.results):
        raise InputError("--labels", f"are {len(args.labels)} for {len(args.results)} results", "one a result")
    manifest = Manifest("report", args)
    rows = read_rows(args.results, args.labels, args.baselines)
    curves = read_curves(args.train_logs)
    warnings = [*noted_warnings(rows, args.manifests), *compare.warning_lines(rows)]
    sections = {
        "Against the best baseline": compare.ratio_lines(rows),
        "What each stage gained and lost": compare.change_lines(rows),
        "The item prior": compare.prior_lines(rows),
        "The judge": compare.judge_lines(rows),
    }
    notes = ({"Warnings": warnings} if warnings else {}) | sections
    found: dict[str, Any] = {
        "stages": compare.between_stages(rows, args.bootstrap),
        "baselines": compare.against_baselines(rows, args.bootstrap),
        "readings": [],
        "errors": [],
    }
    if args.data_dir:
        bench = examples.Bench(args.data_dir, args.titles, args.product_titles)
        last = [row for row in rows if row.kind == "stage"][-1]
        found["readings"] = examples.readings(last, bench, EXAMPLES)
        found["errors"] = examples.errors(last, bench)
    value = {
        "title": args.title,
        "rows": [{"label": row.label, "kind": row.kind, **row.value} for row in rows],
        "notes": notes,
        "paired": [c.as_dict() for c in (*found["baselines"], *found["stages"])],
        "errors": found["errors"],
        "examples": [dataclasses.asdict(r) for r in found["readings"]],
        "curves": curves,
    }
    page = report_page(args.title, rows, curves, notes, found)
    write_text(args.output_dir / "report.md", markdown(args.title, rows, notes, found))
    write_json(args.output_dir / "report.json", value)
    write_text(args.output_dir / "report.html", page)
    for name in ("report.md", "report.json", "report.html"):
        manifest.output(args.output_dir / name)
    manifest.write(args.output_dir)
    print(terminal_table(rows))
    for lines in sections.values():
        print("\n".join(["", *lines]) if lines else "", end="\n" if lines else "")
    print(f"\nreport in {args.output_dir}: report.md, report.json, report.html", flush=True)
    for line in warnings:
        say_warning(line)


if __name__ == "__main__":
    cli(main)()
