"""The report as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.reporting.compare import HEADINGS, Comparison
from benchmarks.reporting.examples import Reading, Users
from benchmarks.reporting.pictures import every_metric, first_screen
from benchmarks.reporting.rows import Row, columns, span_of, text_of, title_of
from benchmarks.reporting.story import NOTE, Claim
from onerec.pages import Block, cards, charts, folded, folded_lines, heading, html_page, line_chart, lines, table

CURVES = {  # a chart: its lines' names by their keys
    "loss": {"loss": "loss", "itemic_loss": "itemic tokens", "text_loss": "text tokens"},
    "agreement with the teacher": {"overlap": "share of its likeliest tokens"},
    "reward of a step": {"reward": "reward"},
    "validation": {"validation": "mean Recall@10"},
}
_NOTE = "Whiskers and small print: 95 % intervals by bootstrap over the test users. All on the same test rows."
_TABLE = "Stages of the chain and baselines. Bold: best of the column; ↓: less is better; small: 95 % interval."
_USERS = (
    "Drawn at random from the last stage's answers, half of them with a hit where there are such. "
    "Of all {asked:,} users asked, {hits:,} have one in the first ten. ✓ marks hits."
)
_DIFFERENCES = (
    "On the samples that both results have. p: two-sided, paired bootstrap over users (its least value is 2 over the "
    "resamples and one); sign test over the users who differ. Not corrected for the number of rows."
)
_EXAMPLES = "Drawn at random from the last stage: some that went well, some that did not. ✓ marks hits."
_ERRORS = "The last stage, first ten items: which answers are found, and how near the SIDs of the others come."


def _curves(curves: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    found = []
    for what, keys in CURVES.items():
        for curve in curves:
            series = [
                (label, [(x["step"], x[key]) for x in curve["lines"] if x.get(key) is not None])
                for key, label in keys.items()
            ]
            if any(points for _, points in series):
                found.append({"heading": f"{curve['name']}: {what}", "svg": line_chart(series)})
    return found


def beam_charts(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Recall against beam width, one chart a result that measured it."""
    found = []
    for row in rows:
        for k in (10, 32):
            series = [
                (
                    title_of(rows, task),
                    [(p["width"], p[f"recall@{k}"]) for p in sorted(points, key=lambda p: p["width"])],
                )
                for task, points in row.value.get("beams", {}).items()
            ]
            if any(points for _, points in series):
                chart = line_chart(series, x_label="beams", marks=True)
                found.append({"heading": f"{row.label}: recall@{k}", "svg": chart})
    return found


def _all_metrics(rows: Sequence[Row]) -> list[Block]:
    """One folded table a task: every metric of every row with its interval."""
    tasks = list(dict.fromkeys(task for row in rows for task in row.value["tasks"]))
    found = []
    for task in tasks:
        having = [row for row in rows if task in row.value["tasks"]]
        names = list(dict.fromkeys(m for row in having for m in row.value["tasks"][task]))
        body = [[name, *(_with_interval(row, task, name) for row in having)] for name in names if name != "samples"]
        body.append(["samples", *(f"{row.value['tasks'][task].get('samples', 0):.0f}" for row in having)])
        found.append(folded(f"{title_of(rows, task)}: every metric", ["metric", *(r.label for r in having)], body))
    return found


def _with_interval(row: Row, task: str, metric: str) -> str:
    value, interval = row.cell(task, metric), row.interval(task, metric)
    if value is None:
        return "–"
    return text_of(value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _main_table(rows: Sequence[Row]) -> Block:
    chosen = columns(rows)
    best = [column.best(rows) for column in chosen]
    body = []
    for row in rows:
        cells: list[Any] = [row.label]
        for column, top in zip(chosen, best, strict=True):
            value = row.cell(column.task, column.metric)
            small = span_of(row.interval(column.task, column.metric))
            cells.append({"text": text_of(value), "small": small, "best": value is not None and value == top})
        body.append(cells)
    return table(["stage", *(c.heading for c in chosen)], body, id="results", classes=[row.kind for row in rows])


def _card(r: Reading) -> dict[str, Any]:
    terms = [
        ("history, latest last", r.history),
        ("prompt", r.prompt),
        ("thinking", r.thought),
        ("recommended", r.predicted),
        ("what the user took", r.taken),
        ("reference", r.reference),
        ("written", r.text),
    ]
    return {"heading": r.note, "aside": r.uuid[:8], "terms": [term for term in terms if term[1]]}


def _users(users: Users | None) -> list[Block]:
    if users is None:
        return []
    note = _USERS.format(asked=users.asked, hits=users.hits)
    text = f"{_count(len(users.readings))} users to look at"
    return [heading(text, "users", note), cards([_card(r) for r in users.readings], wide=True)]


def _count(n: int) -> str:
    return "Ten" if n == 10 else str(n)


def _examples(rows: Sequence[Row], readings: Sequence[Reading], shown: str) -> list[Block]:
    """``shown``: the task whose users have been looked at."""
    by_task: dict[str, list[dict[str, Any]]] = {}
    for r in readings:
        if r.task != shown:
            by_task.setdefault(r.task, []).append(_card(r))
    if not by_task:
        return []
    found = [heading("Examples of other tasks", "examples", _EXAMPLES)]
    for task, several in by_task.items():
        found += [heading(title_of(rows, task), level=3), cards(several, wide=True)]
    return found


def _errors(rows: Sequence[Row], errors: Sequence[dict[str, Any]]) -> list[Block]:
    found = []
    for error in errors:
        body = [(what, f"{100 * value:.1f} %", n) for what, value, n in error["rows"]]
        found.append({"heading": title_of(rows, error["task"]), "rows": body})
    return [heading("Errors to learn from", "errors", _ERRORS), cards(found)] if found else []


def _differences(stages: Sequence[Comparison], baselines: Sequence[Comparison]) -> list[Block]:
    if not (stages or baselines):
        return []
    found = [heading("Paired differences", "differences", _DIFFERENCES)]
    for text, several in (
        ("The last stage and the best baseline of each task", baselines),
        ("Each stage and the one before it", stages),
    ):
        if several:
            found += [heading(text, level=3), table(HEADINGS, [c.cells() for c in several])]
    return found


def _pictures(rows: Sequence[Row], story: Sequence[Claim], n_boot: int) -> Block:
    found = first_screen(rows, n_boot)
    said = [(claim.verdict, claim.text, claim.numbers) for claim in story]
    if said:
        found.append({"heading": "What this run shows", "said": said, "note": NOTE})
    return cards(found, id="pictures")


def report_page(
    title: str,
    rows: Sequence[Row],
    curves: Sequence[dict[str, Any]],
    notes: dict[str, Sequence[str]],
    found: dict[str, Any],
) -> str:
    """The page: pictures, users, curves, tables.

    ``notes`` are lines by heading; ``found`` has story, users, stages, baselines, readings, errors and bootstrap.
    """
    users, notes = found["users"], dict(notes)
    blocks = [_pictures(rows, found["story"], found["bootstrap"])]
    warnings = notes.pop("Warnings", [])
    blocks += folded_lines(f"Warnings: {len(warnings)}", warnings)
    blocks += _users(users)
    blocks += charts("Training, step by step", _curves(curves), "curves")
    blocks += charts("Every metric, stage by stage", every_metric(rows), "metrics")
    blocks += charts("Recall against beam width", beam_charts(rows), "beams")
    blocks += [*_examples(rows, found["readings"], users.task if users else ""), *_errors(rows, found["errors"])]
    blocks += [heading("All results", "table", _TABLE), _main_table(rows), *_all_metrics(rows)]
    for text, several in notes.items():
        blocks += lines(text, several)
    blocks += _differences(found["stages"], found["baselines"])
    return html_page(title, _NOTE, blocks)
