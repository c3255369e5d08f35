"""Write every table of measurements in the documents from experiments/*/results.json; results.sh calls this.

    python scripts/results.py
    python scripts/results.py --add runs/mine/report/report.json --experiment experiments/2026-12-01-mine

A results.json is ``{"tables": [table, …]}``. A table has ``name``, ``title``, ``command``, ``machine``, ``columns``,
``rows`` (an object a row, by column), and where they are known

- ``seeds``; ``note``; ``units`` and ``signed``: columns of percentages; of changes, written with their sign;
- ``section``: it stands in RESULTS.md, under that heading;
- ``published``: rows of recipes/published.json that follow.

A value is a number, whose digits are kept; a list of them, one a seed; ``{"mean", "sd"}``;
``{"value", "low", "high"}``, a 95 % interval; null where it was not measured; or text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.run import ROOT, write_text

SECTIONS = ("Toy world", "Real data", "Tokenizer", "Distillation", "GRPO", "Speed and memory")
NEEDED = ("name", "title", "command", "machine", "columns", "rows")
KEYS = {*NEEDED, "seeds", "note", "units", "signed", "section", "published"}
# Of a report those that go into a table.
METRICS = ("recall@10", "ndcg@10", "pass@1", "auc", "embedding_similarity", "char_rouge_l")
METRICS += ("exact_match", "bits_per_byte")
BLOCK = re.compile(r"^(<!-- results: (\S+) -->\n).*?^(<!-- end of results -->)$", re.DOTALL | re.MULTILINE)
HEAD = """# Results

Written by `bash scripts/results.sh` from `experiments/*/results.json`; edit those. Each table names its command, in the
words of its day, and links the experiment that says what it decided. Older tables, and how older commands are read
today, are in the [experiments](experiments/README.md).
"""


def read(path: Path) -> Any:
    """A JSON file whose fractions keep their digits (as `Decimal`)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except json.JSONDecodeError as error:
        raise InputError(path, f"is not JSON ({error})", "the file as it was committed") from None


def tables_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The tables of an experiment by name; raises `InputError` for a missing or unknown key, column or section."""
    path = folder / "results.json"
    tables: dict[str, dict[str, Any]] = {}
    for table in read(path)["tables"] if path.exists() else []:
        name = table.get("name", "a table without name")
        if wrong := [*(key for key in NEEDED if key not in table), *(table.keys() - KEYS)]:
            raise InputError(path, f"{name}: {wrong[0]} is missing or unknown", f"the keys {', '.join(NEEDED)}")
        used = {column for row in table["rows"] for column in row} | {*table.get("units", ()), *table.get("signed", ())}
        if wrong := used - set(table["columns"]):
            raise InputError(path, f"{name}: {sorted(wrong)[0]} is no column", f"one of {', '.join(table['columns'])}")
        if table.get("section", SECTIONS[0]) not in SECTIONS:
            raise InputError(path, f"{name}: {table['section']} is no section", f"one of {', '.join(SECTIONS)}")
        if not table["title"] or not table["machine"]:
            raise InputError(path, f"{name}: has no title or no machine", "what was measured, and on what")
        tables[name] = table
    return tables


def number(value: Any, unit: str = "", signed: bool = False) -> str:
    """``12,952``, ``0.0620``, ``+4.2 %``."""
    text = f"{value:{'+' if signed else ''},}".replace("-", "−")
    return f"{text} {unit}" if unit else text


def cell(value: Any, unit: str = "", signed: bool = False) -> str:
    """A value as it stands in a table."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(cell(one, unit, signed) for one in value)
    if isinstance(value, dict) and "sd" in value:
        return f"{number(value['mean'], signed=signed)} ± {number(value['sd'], unit)}"
    if isinstance(value, dict):
        low, high = (number(value[end], signed=signed) for end in ("low", "high"))
        return f"{cell(value['value'], unit, signed)} ({low} to {high})"
    return number(value, unit, signed)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def published_rows(data_set: str) -> list[dict[str, Any]]:
    """What others published on a data set, as rows of a table."""
    known = read(ROOT / "scripts/recipes/published.json")
    return [
        {"model": f"{row['name']}, {row['source']}", **dict(zip(known["metrics"], row["values"], strict=True))}
        for row in known[data_set]
    ]


def printed(table: Mapping[str, Any]) -> str:
    """The table as Markdown, and below it how it was made."""
    rows = table["rows"] + (published_rows(table["published"]) if "published" in table else [])
    units, signed = table.get("units", {}), table.get("signed", ())
    cells = [
        [cell(row[name], units.get(name, ""), name in signed) if name in row else "" for name in table["columns"]]
        for row in rows
    ]
    how = f"`{table['command']}`; {table['machine']}" if table["command"] else table["machine"]
    seeds = f"; seeds {cell(table['seeds'])}" if len(table.get("seeds", ())) > 1 else ""
    seeds = seeds or (f"; seed {table['seeds'][0]}" if "seeds" in table else "")
    note = f" {table['note']}" if "note" in table else ""
    return f"{markdown(table['columns'], cells)}\n{how}{seeds}.{note}\n"


def fill(path: Path, text: str, block: Callable[[str], str]) -> str:
    """``text`` with every block between markers written anew."""
    filled = BLOCK.sub(lambda match: f"{match[1]}{block(match[2])}{match[3]}", text)
    if len(re.findall(r"^<!-- results: ", text, re.MULTILINE)) != len(BLOCK.findall(text)):
        raise InputError(path, "has a block of results that does not end", "<!-- end of results --> behind it")
    return filled


def question(path: Path) -> tuple[str, str]:
    text = path.read_text(encoding="utf-8")
    title = re.search(r"^# (.+)$", text, re.MULTILINE)
    asked = re.search(r"^Question: (.+?)\n\n", text, re.MULTILINE | re.DOTALL)
    if not title or not asked:
        raise InputError(path, "lacks its title or question", "'# <title>' and 'Question: …'")
    return title[1], re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(asked[1].split()))


def value(experiments: Mapping[str, Any], folder: str, name: str, where: Mapping[str, Any], column: Any) -> str:
    """One value of a table for the README's headlines, an interval left to the table; of a list of columns the mean."""
    if folder == "published":
        table = {"rows": published_rows(name)}
    else:
        table = experiments.get(folder, {}).get(name, {"rows": []})
    rows = [row for row in table["rows"] if where.items() <= row.items()]
    if len(rows) != 1:
        what = f"{folder}/{name}: {len(rows)} rows with {dict(where)}"
        raise InputError(ROOT / "experiments/headline.json", what, "a description of one row")
    if isinstance(column, list):
        mean = sum(Decimal(rows[0][one]) for one in column) / len(column)
        return number(mean.quantize(Decimal("0.0001")))
    found = rows[0][column]
    if isinstance(found, Mapping) and "value" in found:
        found = found["value"]
    return cell(found, table.get("units", {}).get(column, ""), column in table.get("signed", ()))


def headline(experiments: Mapping[str, Any]) -> str:
    """The table of README.md, whose numbers are looked up where experiments/headline.json says."""
    rows = []
    for row in read(ROOT / "experiments/headline.json")["rows"]:
        values = [value(experiments, *place) for place in row["values"]]
        rows.append([row[key].format(*values) for key in ("what", "metric", "here", "beside")])
    return markdown(["measured", "metric", "here", "beside it"], rows)


def page_of(folder: Path, tables: Mapping[str, Any]) -> str:
    """The page of an experiment with its tables; raises `InputError` where page and results.json name others."""
    page = folder / "README.md"
    text = page.read_text(encoding="utf-8")
    shown = [name for _, name, _ in BLOCK.findall(text)]
    if sorted(shown) != sorted(tables):
        differ = sorted(set(shown) ^ set(tables)) or shown
        raise InputError(page, f"and results.json differ in {differ[0]}", "each table once in both")
    return fill(page, text, lambda name: printed(tables[name]))


def render() -> dict[Path, str]:
    """Every document that holds tables of measurements, as it should be."""
    names = sorted(page.parent.name for page in (ROOT / "experiments").glob("*/README.md"))
    names.sort(key=lambda name: name[:10], reverse=True)  # the newest day first, by name within a day
    experiments = {name: tables_of(ROOT / "experiments" / name) for name in names}
    out, index = {}, ""
    sections = dict.fromkeys(SECTIONS, "")
    for name, tables in experiments.items():
        folder = ROOT / "experiments" / name
        out[folder / "README.md"] = page_of(folder, tables)
        title, asked = question(folder / "README.md")
        index += f"- {name[:10]} [{title}]({name}/README.md): {asked}\n"
        link = f"[{title}](experiments/{name}/README.md)"
        for table in (table for table in tables.values() if "section" in table):
            sections[table["section"]] += f"\n### {table['title']}\n\n{printed(table)}\n{link}\n"
    out[ROOT / "RESULTS.md"] = HEAD + "".join(f"\n## {name}\n{text}" for name, text in sections.items() if text)
    for page, block in ((ROOT / "experiments/README.md", index), (ROOT / "README.md", headline(experiments))):
        out[page] = fill(page, page.read_text(encoding="utf-8"), lambda _, block=block: block)
    return out


def seeds_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model of a recipe's seeds.json; what others published is in recipes/published.json."""
    if row["source"]:
        return []
    values = {name: {"mean": v["mean"], "sd": v["sd"]} for name, v in row["metrics"].items()}
    return [{"model": row["name"], **{name: v["mean"] if v["sd"] is None else v for name, v in values.items()}}]


def report_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A model of a run's report.json: a row a task and metric, with its interval where there is one."""
    rows = []
    for task, metrics in row["tasks"].items():
        for metric in (metric for metric in METRICS if metric in metrics):
            value, between = metrics[metric], row["intervals"].get(task, {}).get(metric)
            value = {"value": value, "low": between[0], "high": between[1]} if between else value
            rows.append({"model": row["label"], "task": task, "metric": metric, "value": value})
    return rows


def from_run(path: Path) -> dict[str, Any]:
    """Columns and rows of a run's report.json or of a recipe's seeds.json."""
    found = read(path).get("rows", [])
    rows = [new for row in found for new in (seeds_rows if "metrics" in row else report_rows)(row)]
    if not rows:
        raise InputError(path, "holds no results", "the report.json of a run, or the seeds.json of a recipe")
    return {"columns": list(dict.fromkeys(key for row in rows for key in row)), "rows": rows}


def line(value: Any) -> str:
    """JSON in one line, fractions with their digits."""
    text = json.dumps(value, ensure_ascii=False, default=lambda fraction: f"@{fraction}@")
    return re.sub(r'"@([\d.E+-]+)@"', r"\1", text)


def dump(document: Mapping[str, Any]) -> str:
    tables = []
    for table in document["tables"]:
        words = "".join(f'      "{key}": {line(value)},\n' for key, value in table.items() if key != "rows")
        rows = ",\n".join(f"        {line(row)}" for row in table["rows"])
        tables.append(f'    {{\n{words}      "rows": [\n{rows}\n      ]\n    }}')
    return '{\n  "tables": [\n' + ",\n".join(tables) + "\n  ]\n}\n"


def add(source: Path, folder: Path, name: str) -> None:
    """Put the table of a run beside those of an experiment, in the place of one of its name; its words are kept."""
    path = folder / "results.json"
    tables = {table["name"]: table for table in read(path)["tables"]} if path.exists() else {}
    words = dict.fromkeys(("title", "command", "machine"), "") | tables.get(name, {})
    tables[name] = {"name": name} | words | from_run(source)
    write_text(path, dump({"tables": list(tables.values())}))
    print(f"{path}: {name}, {len(tables[name]['rows'])} rows; say there its title, command and machine")


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--add", type=Path, help="report.json or seeds.json whose table goes into --experiment")
    parser.add_argument("--experiment", type=Path, help="folder of experiments/")
    parser.add_argument("--table", default="run", help="name of that table")
    args = parser.parse_args(argv)
    if args.add:
        if not args.experiment:
            raise InputError("--experiment", "is missing", "the folder of experiments/ that --add writes to")
        return add(args.add, args.experiment, args.table)
    texts = render()
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
        print(path.relative_to(ROOT))
    print(f"{len(changed)} documents written")


if __name__ == "__main__":
    cli(main)()
