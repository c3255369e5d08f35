"""Examples to read and errors to learn from, out of a result's predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalogues import BenchData, sids_of, target_counts
from benchmarks.evaluators.rank import history_of, seen_items
from benchmarks.reporting.rows import Row
from benchmarks.results import Scores, load_predictions
from benchmarks.tasks import TASKS, BenchTask, Example
from onerec.catalog import ItemIndex
from onerec.parquet import Kind, open_parquet, read_table
from onerec.sid import SidSpec
from onerec.tasks import RANK, VIDEO_AD

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


class Bench(BenchData):
    """The benchmark data of a report, with the titles of a catalogue's items."""

    def __init__(self, folder: Path, titles: Sequence[Path], product_titles: Sequence[Path]) -> None:
        """``titles``: Parquet files of pid and title, caption or dense_caption."""
        super().__init__(folder)
        self.titles = {"video_ad": read_titles(titles), "product": read_titles(product_titles)}

    def named(self, task: BenchTask) -> bool:
        """Whether the items of a task have titles, or ids of the user's own."""
        return bool(self.titles[task.catalogue] or (self.items and task.catalogue == VIDEO_AD))

    def answered(self, row: Row, task: BenchTask) -> list[tuple[Example, dict[str, Any]]]:
        """Examples of a task with a result's prediction lines; empty where one of the two is missing."""
        lines = load_predictions(row.folder, task.name)
        by_uuid = {line["uuid"]: self.own_ids(line, task.name, back=True) for line in lines}
        if not by_uuid or not (self.folder / task.test_file).exists():
            return []
        return [(e, by_uuid[e.uuid]) for e in self.examples(task) if e.uuid in by_uuid]


def read_titles(paths: Sequence[Path], length: int = TITLE_LENGTH) -> dict[int, str]:
    """pid to title, cut to ``length`` characters, of Parquet files with pid and title, caption or dense_caption."""
    found: dict[int, str] = {}
    for path in paths:
        names = open_parquet(path, ["pid"]).schema_arrow.names
        column = next((name for name in TITLE_COLUMNS if name in names), TITLE_COLUMNS[0])
        table = read_table(path, {"pid": Kind.INT, column: Kind.TEXT}, strict=False)
        texts = [_short(text or "", length) for text in table[column].to_pylist()]
        found |= dict(zip(table["pid"].to_pylist(), texts, strict=True))
    return found


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def readings(row: Row, bench: Bench, each: int, seed: int = 0) -> list[Reading]:
    """For every task of a result ``each`` drawn examples that went well and as many that did not."""
    found: list[Reading] = []
    for task in TASKS.values():
        pairs = [] if task.kind == "label" else bench.answered(row, task)
        if not pairs:
            continue
        show = _ranking(task, bench) if task.kind == "rank" else _text(task, row)
        shown = [show(*pair) for pair in pairs]
        order = np.random.default_rng(seed).permutation(len(shown))
        good = [shown[i][1] for i in order if shown[i][0]]
        bad = [shown[i][1] for i in order if not shown[i][0]]
        found += [*good[:each], *bad[:each]]
    return found


@dataclasses.dataclass(frozen=True)
class Users:
    """Some users of a ranking task, half of them with a hit where there are such; ``hits`` of ``asked`` have one."""

    task: str
    hits: int
    asked: int
    readings: tuple[Reading, ...]


def users_to_look_at(row: Row, bench: Bench, n: int, seed: int = 0) -> Users | None:
    """``n`` drawn users of the first ranking task whose items have names; None where there is none."""
    for task in TASKS.values():
        pairs = bench.answered(row, task) if task.kind == RANK and bench.named(task) else []
        by_user = {example.user: (example, line) for example, line in reversed(pairs)}
        if not by_user:
            continue
        show = _ranking(task, bench)
        shown = [show(*by_user[user]) for user in sorted(by_user)]
        order = np.random.default_rng(seed).permutation(len(shown))
        good, bad = ([shown[i][1] for i in order if shown[i][0] == hit] for hit in (True, False))
        some = max(n // 2, n - len(bad))
        chosen = good[:some]
        return Users(task.name, len(good), len(shown), (*chosen, *bad[: n - len(chosen)]))
    return None


def _ranking(task: BenchTask, bench: Bench):
    index = bench.index(task)
    sid_of, titles = sids_of(index), bench.titles[task.catalogue]

    own = bench.items if task.catalogue == VIDEO_AD else None

    def title(pid: int) -> str:
        if own:
            return f"{titles[pid]} [{own.show(pid)}]" if titles.get(pid) else str(own.show(pid))
        if titles.get(pid):
            return titles[pid]
        return "–".join(map(str, sid_of[pid])) if pid in sid_of else f"item {pid}"

    def of_user(example: Example) -> str:
        return f", user {bench.users.show(example.uid)}" if bench.users else ""

    def show(example: Example, line: dict[str, Any]) -> tuple[bool, Reading]:
        taken, top = set(example.answer_ids), line["items"][:K]
        hits = len(taken & set(top))
        history = history_of(example, index, bench.spec)[-HISTORY:]
        reading = Reading(
            task.name,
            example.uuid,
            f"{hits} of {len(taken)} found in the first {K}" + of_user(example),
            line.get("thought", ""),
            tuple(Item(title(pid)) for pid in history),
            tuple(Item(title(pid), pid in taken) for pid in top),
            tuple(Item(title(pid), pid in top) for pid in example.answer_ids),
        )
        return hits > 0, reading

    return show


def _text(task: BenchTask, row: Row):
    scores = Scores.load(row.folder, task.name)
    metric = task.headline if scores and task.headline in scores.columns else task.fallback
    values = dict(zip(scores.uuids, scores.columns[metric], strict=True)) if scores else {}
    known = [v for v in values.values() if not np.isnan(v)]
    middle = float(np.median(known)) if known else 0.0

    def show(example: Example, line: dict[str, Any]) -> tuple[bool, Reading]:
        value = values.get(example.uuid, float("nan"))
        note = "not judged" if np.isnan(value) else f"{metric} {value:.2f}"
        prompt = "\n".join(turn["content"] for turn in example.messages)
        reading = Reading(
            task.name,
            example.uuid,
            note,
            line.get("thought", ""),
            prompt=prompt if len(prompt) <= PROMPT_LENGTH else "…" + prompt[-PROMPT_LENGTH:],
            reference=_short(example.answer, 600),
            text=_short(line["text"], 600),
        )
        return bool(value > middle), reading

    return show


def errors(row: Row, bench: Bench) -> list[dict[str, Any]]:
    """Where the misses of each ranking task are: one dict a task, of (what, value, how many answers or samples)."""
    found = []
    for name, task in TASKS.items():
        pairs = bench.answered(row, task) if task.kind == "rank" else []
        if pairs:
            counts = target_counts(bench.folder).get(task.catalogue, {})
            found.append({"task": name, "rows": _breakdown(pairs, bench.index(task), bench.spec, counts)})
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
