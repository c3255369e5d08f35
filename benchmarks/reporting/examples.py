"""Examples to read and errors to learn from, out of a result's predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogues import load_catalogue, sids_of, target_counts
from benchmarks.evaluators.rank import seen_items
from benchmarks.reporting.compare import scores_of
from benchmarks.reporting.rows import Row
from benchmarks.results import load_predictions
from benchmarks.tasks import TASKS, BenchTask, Example, load_examples, load_spec
from onerec.catalog import ItemIndex
from onerec.parquet import Kind, open_parquet, read_table
from onerec.sid import SidSpec

TITLE_COLUMNS = ("title", "caption", "dense_caption")
HISTORY, TITLE_LENGTH, PROMPT_LENGTH, K = 8, 48, 400, 10
HEAD, MIDDLE = 0.1, 0.5  # the most popular tenth of the items; then those down to the half


@dataclasses.dataclass(frozen=True)
class Item:
    """An item as it is shown: its title and whether it is a hit."""

    title: str
    hit: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """One example: what was there, what came out, what was right. Items for rankings, text for the others."""

    task: str
    uuid: str
    note: str
    thought: str = ""
    history: tuple[Item, ...] = ()
    predicted: tuple[Item, ...] = ()
    taken: tuple[Item, ...] = ()
    prompt: str = ""
    reference: str = ""
    text: str = ""


@dataclasses.dataclass(frozen=True)
class Bench:
    """The benchmark data of a report: where they are, and the titles of a catalogue's items."""

    folder: Path
    spec: SidSpec
    titles: dict[str, dict[int, str]]

    @staticmethod
    def open(folder: Path, titles: Sequence[Path], product_titles: Sequence[Path]) -> Bench:
        """``titles``: Parquet files of pid and title, caption or dense_caption."""
        named = {"video_ad": _read_titles(titles), "product": _read_titles(product_titles)}
        return Bench(folder, load_spec(folder), named)


def _read_titles(paths: Sequence[Path]) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in paths:
        names = open_parquet(path, ["pid"]).schema_arrow.names
        column = next((name for name in TITLE_COLUMNS if name in names), TITLE_COLUMNS[0])
        table = read_table(path, {"pid": Kind.INT, column: Kind.TEXT}, strict=False)
        texts = [_short(text or "", TITLE_LENGTH) for text in table[column].to_pylist()]
        found |= dict(zip(table["pid"].to_pylist(), texts, strict=True))
    return found


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def readings(row: Row, bench: Bench, each: int, seed: int = 0) -> list[Reading]:
    """For every task of a result ``each`` drawn examples that went well and as many that did not."""
    found: list[Reading] = []
    for name, task in TASKS.items():
        lines = load_predictions(row.folder, name)
        if not lines or task.kind == "label" or not (bench.folder / task.test_file).exists():
            continue
        by_uuid = {line["uuid"]: line for line in lines}
        examples = [e for e in load_examples(bench.folder, task) if e.uuid in by_uuid]
        show = _ranking(task, bench) if task.kind == "rank" else _text(task, row)
        shown = [show(example, by_uuid[example.uuid]) for example in examples]
        order = np.random.default_rng(seed).permutation(len(shown))
        good = [shown[i][1] for i in order if shown[i][0]]
        bad = [shown[i][1] for i in order if not shown[i][0]]
        found += [*good[:each], *bad[:each]]
    return found


def _ranking(task: BenchTask, bench: Bench):
    index = load_catalogue(bench.folder, task.catalogue, bench.spec)
    sid_of, titles = sids_of(index), bench.titles[task.catalogue]

    def title(pid: int) -> str:
        if titles.get(pid):
            return titles[pid]
        return "–".join(map(str, sid_of[pid])) if pid in sid_of else f"item {pid}"

    def show(example: Example, line: dict[str, Any]) -> tuple[bool, Reading]:
        taken, top = set(example.answer_ids), line["items"][:K]
        hits = len(taken & set(top))
        history = example.history
        if not history:
            sids = bench.spec.parse("".join(turn["content"] for turn in example.messages))
            history = [pids[0] for codes in sids if (pids := index.pids_of(codes))]
        reading = Reading(
            task.name, example.uuid, f"{hits} of {len(taken)} found in the first {K}", line.get("thought", ""),
            tuple(Item(title(pid)) for pid in history[-HISTORY:]),
            tuple(Item(title(pid), pid in taken) for pid in top),
            tuple(Item(title(pid), pid in top) for pid in example.answer_ids),
        )  # fmt: skip
        return hits > 0, reading

    return show


def _text(task: BenchTask, row: Row):
    scores = scores_of(row.folder, task.name)
    metric = task.headline if scores and task.headline in scores.columns else task.fallback
    values = dict(zip(scores.uuids, scores.columns[metric], strict=True)) if scores else {}
    known = [v for v in values.values() if not np.isnan(v)]
    middle = float(np.median(known)) if known else 0.0

    def show(example: Example, line: dict[str, Any]) -> tuple[bool, Reading]:
        value = values.get(example.uuid, float("nan"))
        note = "not judged" if np.isnan(value) else f"{metric} {value:.2f}"
        prompt = "\n".join(turn["content"] for turn in example.messages)
        reading = Reading(
            task.name, example.uuid, note, line.get("thought", ""),
            prompt=prompt if len(prompt) <= PROMPT_LENGTH else "…" + prompt[-PROMPT_LENGTH:],
            reference=_short(example.answer, 600), text=_short(line["text"], 600),
        )  # fmt: skip
        return bool(value > middle), reading

    return show


def errors(row: Row, bench: Bench) -> list[dict[str, Any]]:
    """Where the misses of each ranking task are: one dict a task, of (what, value, how many answers or samples)."""
    found = []
    for name, task in TASKS.items():
        lines = load_predictions(row.folder, name)
        if not lines or task.kind != "rank" or not (bench.folder / task.test_file).exists():
            continue
        by_uuid = {line["uuid"]: line for line in lines}
        examples = [e for e in load_examples(bench.folder, task) if e.uuid in by_uuid]
        index = load_catalogue(bench.folder, task.catalogue, bench.spec)
        counts = target_counts(bench.folder).get(task.catalogue, {})
        pairs = [(example, by_uuid[example.uuid]) for example in examples]
        found.append({"task": name, "rows": _breakdown(pairs, index, bench.spec, counts)})
    return found


def _breakdown(
    pairs: Sequence[tuple[Example, dict[str, Any]]], index: ItemIndex, spec: SidSpec, counts: dict[int, int]
) -> list[tuple[str, float, int]]:
    """Shares: of answers found in the first ten by what they are, of missed samples by how near the SIDs came."""
    sid_of = sids_of(index)
    order = sorted(sid_of, key=lambda pid: -counts.get(pid, 0))
    place = {pid: i / len(order) for i, pid in enumerate(order)}
    groups: dict[str, list[bool]] = {}
    depths: list[int] = []
    for example, line in pairs:
        top = set(line["items"][:K])
        seen = seen_items(example, index, spec)
        for pid in dict.fromkeys(example.answer_ids):
            where = place.get(pid, 1.0)
            kind = "popular (first tenth)" if where < HEAD else "middle" if where < MIDDLE else "rare (last half)"
            for group in (
                f"answers that are {kind}" if counts else "all answers",
                "answers that stand in the history" if pid in seen else "answers new to the user",
            ):
                groups.setdefault(group, []).append(pid in top)
        if not top & set(example.answer_ids):
            answers = [sid_of[pid] for pid in example.answer_ids if pid in sid_of]
            depths.append(max((common_prefix(s, a) for s in line.get("sids", [])[:K] for a in answers), default=0))
    order_of_kinds = ("all", "popular", "middle", "rare", "history", "new")
    named = sorted(groups.items(), key=lambda pair: [kind in pair[0] for kind in order_of_kinds], reverse=True)
    rows = [(f"{name}: found", sum(v) / len(v), len(v)) for name, v in named]
    rows.append(("samples without a hit", len(depths) / len(pairs), len(pairs)))
    for depth in range(spec.n_layers + 1):
        if depths:
            what = f"of them: nearest SID shares {depth} of {spec.n_layers} codes"
            what += " (the same SID, another item first)" if depth == spec.n_layers else ""
            rows.append((what, depths.count(depth) / len(depths), len(depths)))
    return rows


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many codes two SIDs share from the first on."""
    n = 0
    for x, y in zip(a, b, strict=True):
        if x != y:
            break
        n += 1
    return n
