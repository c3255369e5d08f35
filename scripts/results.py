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
BLOCK = re.compile(r"^(<!-- results: (\S+) -->\n).*?^(<!-- end of results -->)$", re.DOTALL | re.MULTILINE)
HEAD = """# Results

Written by `bash scripts/results.sh` from `experiments/*/results.json`; edit those. Each table names its command and
links the experiment that says what it decided. Older tables stand in the [experiments](experiments/README.md) alone.
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


def published_rows(root: Path, data_set: str) -> list[dict[str, Any]]:
    """What others published on a data set, as rows of a table."""
    known = read(root / "scripts/recipes/published.json")
    return [
        {"model": f"{row['name']}, {row['source']}", **dict(zip(known["metrics"], row["values"], strict=True))}
        for row in known[data_set]
    ]


def printed(table: Mapping[str, Any], root: Path) -> str:
    """The table as Markdown, and below it how it was made."""
    rows = table["rows"] + (published_rows(root, table["published"]) if "published" in table else [])
    units, signed = table.get("units", {}), table.get("signed", ())
    cells = [
        [cell(row[name], units.get(name, ""), name in signed) if name in row else "" for name in table["columns"]]
        for row in rows
    ]
    if not table["title"] or not table["machine"]:
        raise InputError(
            "results.json", f"{table['name']}: has no title or no machine", "what was measured, and on what"
        )
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
    """Title and question of an experiment's page."""
    text = path.read_text(encoding="utf-8")
    title, asked = (
        re.search(r"^# (.+)$", text, re.MULTILINE),
        re.search(r"^Question: (.+?)\n\n", text, re.MULTILINE | re.DOTALL),
    )
    if not title or not asked:
        raise InputError(path, "lacks its title or question", "'# <title>' and 'Question: …'")
    return title[1], re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(asked[1].split()))


def value(root: Path, experiments: Mapping[str, Any], folder: str, name: str, where: Mapping, column: Any) -> str:
    """One value of a table for the README's headlines; a list of columns gives their mean."""
    path = root / "experiments/headline.json"
    rows = (
        published_rows(root, name)
        if folder == "published"
        else experiments.get(folder, {}).get(name, {}).get("rows", [])
    )
    found = [row for row in rows if where.items() <= row.items()]
    if len(found) != 1:
        raise InputError(path, f"{folder}/{name}: {len(found)} rows with {dict(where)}", "a description of one row")
    table = {} if folder == "published" else experiments[folder][name]
    if isinstance(column, list):
        mean = sum(Decimal(found[0][one]) for one in column) / len(column)
        return number(mean.quantize(Decimal("0.0001")))
    return cell(found[0][column], table.get("units", {}).get(column, ""), column in table.get("signed", ()))


def headline(root: Path, experiments: Mapping[str, Any]) -> str:
    """The table of README.md, whose numbers are looked up where experiments/headline.json says."""
    spec = read(root / "experiments/headline.json")
    rows = []
    for row in spec["rows"]:
        values = [value(root, experiments, *place) for place in row["values"]]
        rows.append([row[key].format(*values) for key in ("what", "metric", "here", "beside")])
    return markdown(["measured", "metric", "here", "beside it"], rows)


def render(root: Path) -> dict[Path, str]:
    """Every document that holds tables of measurements, as it should be."""
    folders = sorted(
        (page.parent for page in (root / "experiments").glob("*/README.md")), key=lambda x: x.name, reverse=True
    )
    folders.sort(key=lambda folder: folder.name[:10], reverse=True)
    experiments = {folder.name: tables_of(folder) for folder in folders}
    out: dict[Path, str] = {}
    index: list[str] = []
    sections: dict[str, list[str]] = {name: [] for name in SECTIONS}
    for folder in folders:
        tables, page = experiments[folder.name], folder / "README.md"
        text = page.read_text(encoding="utf-8")
        shown = [name for _, name, _ in BLOCK.findall(text)]
        if sorted(shown) != sorted(tables):
            differ = sorted(set(shown) ^ set(tables)) or shown
            raise InputError(page, f"and results.json differ in {differ[0]}", "each table once in both")
        out[page] = fill(page, text, lambda name, tables=tables: printed(tables[name], root))
        title, asked = question(page)
        index.append(f"- {folder.name[:10]} [{title}]({folder.name}/README.md): {asked}\n")
        for table in tables.values():
            if "section" in table:
                link = f"[{title}](experiments/{folder.name}/README.md)"
                sections[table["section"]].append(f"\n### {table['title']}\n\n{printed(table, root)}\n{link}\n")
    out[root / "RESULTS.md"] = HEAD + "".join(
        f"\n## {name}\n{''.join(blocks)}" for name, blocks in sections.items() if blocks
    )
    pages = {
        root / "experiments/README.md": lambda _: "".join(index),
        root / "README.md": lambda _: headline(root, experiments),
    }
    for page, block in pages.items():
        out[page] = fill(page, page.read_text(encoding="utf-8"), block)
    return out


def from_run(path: Path) -> dict[str, Any]:
    """A table of a run's report.json (metrics of every model with intervals) or of a recipe's seeds.json."""
    document = read(path)
    rows = []
    for row in document.get("rows", []):
        if "metrics" in row and not row["source"]:  # seeds.json; what others published is in recipes/published.json
            values = {
                name: v["mean"] if v["sd"] is None else {"mean": v["mean"], "sd": v["sd"]}
                for name, v in row["metrics"].items()
            }
            rows.append({"model": row["name"], **values})
        for task, metrics in row.get("tasks", {}).items():
            between = row["intervals"].get(task, {})
            for name in (
                "recall@10",
                "ndcg@10",
                "pass@1",
                "auc",
                "embedding_similarity",
                "char_rouge_l",
                "exact_match",
                "bits_per_byte",
            ):
                if name in metrics:
                    low, high = between.get(name, (None, None))
                    interval = {"value": metrics[name], "low": low, "high": high}
                    rows.append(
                        {
                            "model": row["label"],
                            "task": task,
                            "metric": name,
                            "value": metrics[name] if low is None else interval,
                        }
                    )
    if not rows:
        raise InputError(path, "holds no results", "the report.json of a run, or the seeds.json of a recipe")
    return {"columns": list(dict.fromkeys(key for row in rows for key in row)), "rows": rows}


def dump(document: Mapping[str, Any]) -> str:
    """results.json as text, a row a line, fractions with their digits."""
    plain = {}

    def keep(value: Any) -> Any:
        if isinstance(value, Decimal):
            return plain.setdefault(f"@{value}@", str(value)) and f"@{value}@"
        if isinstance(value, Mapping):
            return {key: keep(one) for key, one in value.items()}
        return [keep(one) for one in value] if isinstance(value, list) else value

    tables = []
    for table in document["tables"]:
        lines = [
            f'      "{key}": {json.dumps(keep(value), ensure_ascii=False)}'
            for key, value in table.items()
            if key != "rows"
        ]
        rows = ",\n".join(f"        {json.dumps(keep(row), ensure_ascii=False)}" for row in table["rows"])
        tables.append("    {\n" + ",\n".join([*lines, f'      "rows": [\n{rows}\n      ]']) + "\n    }")
    text = '{\n  "tables": [\n' + ",\n".join(tables) + "\n  ]\n}\n"
    return re.sub(r'"@([^"@]*)@"', lambda match: plain.get(f"@{match[1]}@", match[0]), text)


def add(source: Path, folder: Path, name: str) -> None:
    """Put the table of a run beside those of an experiment, in the place of one of its name; its words are kept."""
    tables = tables_of(folder)
    words = {key: tables.get(name, {}).get(key, "") for key in ("title", "command", "machine")}
    tables[name] = {**tables.get(name, {}), "name": name, **words, **from_run(source)}
    write_text(folder / "results.json", dump({"tables": list(tables.values())}))
    print(
        f"{folder / 'results.json'}: {name}, {len(tables[name]['rows'])} rows; say there its title, command and machine"
    )


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
    texts = render(ROOT)
    changed = [path for path, text in texts.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, texts[path])
        print(path.relative_to(ROOT))
    print(f"{len(changed)} documents written")


if __name__ == "__main__":
    cli(main)()
