"""The results of several models side by side: terminal table, Markdown, JSON and one self-contained HTML page.

    python report.py --results results/v1.0/results_base results/v1.0/results_sft --labels "base LLM" "SFT" \\
        --baselines results/v1.0/results_popularity results/v1.0/results_cooccurrence \\
        --train_logs "stage 2=../pretrain/output/stg2/train_log.jsonl" --data_dir ../data/output/benchmark_data \\
        --titles ../raw_data/onerec_data/pid2caption.parquet --output_dir report

It begins with what recommendation gained and general ability lost, stage by stage: mean Recall@10 over the ranking
tasks of the last stage, the best baseline as a line, and the share of questions answered right (bits a byte of text
where none is). Beside it stands in words whether the run shows what the chain is for: SFT above counting and above the
best baseline, what it loses of general ability, what distillation wins back and costs, what GRPO adds. "yes" and "no"
are paired 95 % intervals on one side of zero, all else is "not certain". Results are told apart by the names they were
evaluated under: base, sft, distill, rl. Then come ten users, curves, every metric, examples, errors, and the tables.
What was not measured is left out.

Users, examples and errors are the last result's; they need --data_dir. Titles are captions of the items' table.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.intervals import N_BOOT
from benchmarks.reporting import compare, examples
from benchmarks.reporting.page import CURVES, report_page
from benchmarks.reporting.rows import Row, markdown_table, plain_markdown, read_rows, terminal_table, title_of
from benchmarks.reporting.story import NOTE, story
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import BOOT, NUMBER, ArgumentParser
from onerec.folders import MANIFEST
from onerec.run import WARNINGS, Manifest, read_json, read_json_lines, say_warning, write_json, write_text

EXAMPLES = 2  # of a task that went well, and as many that did not
USERS = 10  # to look at
_WIDTH = 100  # columns of a terminal
# Of verl's metrics: what distillation learns from, what GRPO gets.
_VERL = {
    "actor/distillation/loss": "loss",
    "actor/distillation/overlap_ratio": "overlap",
    "onerec/all/reward": "reward",
}
_VALIDATED = re.compile(r"val-(?:core|aux)/onerec/[^/]+/recall@10/mean@1")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", nargs="+", type=Path, required=True, help="results_<name> folders, in the chain's order")
    add("--labels", nargs="+", default=None, help="a name for each result (default: as evaluated)")
    add("--baselines", nargs="*", type=Path, default=[], help="results_<name> folders of baselines")
    add(
        "--train_logs",
        nargs="*",
        default=[],
        metavar="NAME=FILE",
        help="train_log.jsonl or verl's metrics_*.jsonl of each training; several files of one name are one training",
    )
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
    """``NAME=FILE`` to a name and its log lines ({"step", "loss", …}); of a name's files the last one counts."""
    curves: dict[str, dict[float, dict[str, Any]]] = {}
    for spec in specs:
        name, sign, path = spec.partition("=")
        if not sign:
            raise InputError("--train_logs", f"{spec} has no =", "NAME=train_log.jsonl")
        lines = [of_verl(line, path) for line in read_json_lines(path, "give the train_log.jsonl of a training")]
        for line in lines:
            for key in ("step", *(key for keys in CURVES.values() for key in keys if line.get(key) is not None)):
                NUMBER.of(line.get(key), path, key)
        curves.setdefault(name, {}).update((line["step"], line) for line in lines)
    return [{"name": name, "lines": [lines[step] for step in sorted(lines)]} for name, lines in curves.items()]


def of_verl(line: dict[str, Any], path: str) -> dict[str, Any]:
    """A line of verl's metrics by the names of `CURVES`; any other as it is."""
    if "data" not in line:
        return line
    values = line["data"]
    if not isinstance(values, dict):
        raise InputError(path, "has a line without metrics", "the metrics_*.jsonl of distillation or GRPO")
    validated = [value for key, value in values.items() if _VALIDATED.fullmatch(key)]
    found = {name: values.get(key) for key, name in _VERL.items()}
    return {"step": line.get("step"), **found, "validation": np.mean(validated).item() if validated else None}


def noted_warnings(rows: Sequence[Row], manifests: Sequence[Path]) -> list[str]:
    """What other stages and the last model's evaluation noted in their manifests: ``stage (folder): warning``.

    Models on the way to it, such as one that has only read, may well recommend the same to everybody.
    """
    found, evaluated = [], [row.folder / MANIFEST for row in rows if row.kind == "stage"]
    for path in (*manifests, *evaluated[-1:]):
        value = read_json(path) if path.is_file() or path in manifests else {}
        found += [f"{value['stage']} ({path.parent.name}): {text}" for text in value.get(WARNINGS, [])]
    return found


def fitted(line: str) -> str:
    """A line for a terminal, in as many as it needs."""
    return textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def markdown(title: str, rows: Sequence[Row], notes: dict[str, list[str]], value: dict[str, Any]) -> str:
    """The report as Markdown: table, notes, paired differences, errors, examples.

    HTML and links in texts of others stay text.
    """
    parts = [f"# {title}\n\n{markdown_table(rows)}"]
    if value["story"]:
        told = "\n".join(f"- {claim}" for claim in value["story"])
        parts.append(f"## What this run shows\n\n{told}\n\n{NOTE}")
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
        "users": None,
        "readings": [],
        "errors": [],
        "bootstrap": args.bootstrap,
    }
    found["story"] = story(rows, found["baselines"], args.bootstrap)
    if args.data_dir:
        bench = examples.Bench(args.data_dir, args.titles, args.product_titles)
        last = [row for row in rows if row.kind == "stage"][-1]
        found["users"] = examples.users_to_look_at(last, bench, USERS)
        found["readings"] = examples.readings(last, bench, EXAMPLES)
        found["errors"] = examples.errors(last, bench)
    value = {
        "title": args.title,
        "rows": [{"label": row.label, "kind": row.kind, **row.value} for row in rows],
        "story": [dataclasses.asdict(claim) for claim in found["story"]],
        "notes": notes,
        "paired": [c.as_dict() for c in (*found["baselines"], *found["stages"])],
        "errors": found["errors"],
        "users": found["users"] and dataclasses.asdict(found["users"]),
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
    print(terminal_table(rows, _WIDTH))
    for lines in ([str(claim) for claim in found["story"]], compare.prior_lines(rows), compare.judge_lines(rows)):
        print("".join(f"\n{fitted(line)}" for line in lines), end="\n" if lines else "")
    print(f"\nreport in {args.output_dir}: report.md, report.json, report.html", flush=True)
    for line in warnings:
        say_warning(line)


if __name__ == "__main__":
    cli(main)()
