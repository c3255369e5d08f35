"""What the server knows of a run without its model: users of the test files, items by id, SID or title, baselines."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.baselines import QUICK, load_training
from benchmarks.catalogues import SEQUENCES, BenchData, target_counts
from benchmarks.recommenders import RECOMMENDERS
from benchmarks.recommenders.base import Options, Recommender
from benchmarks.reporting.examples import read_titles
from benchmarks.tasks import TASKS, BenchTask, available_tasks
from onerec.errors import InputError
from onerec.parquet import read_table
from onerec.records import TEST_KINDS, read_test
from onerec.run import read_json
from onerec.tasks import RANK, RANK_TASKS, VIDEO_AD

TITLE_LENGTH = 300  # characters
BEST_BASELINE = "transitions"  # where no results say which is


class Unknown(ValueError):
    """A request names something that is not there; the text says what, and what would be right."""


class Library:
    """Benchmark data with titles. ``titles``, ``product_titles``: Parquet files of pid and title; ``results``: the
    results of a version, by which the baseline is chosen.
    """

    def __init__(
        self,
        data: BenchData,
        titles: Sequence[Path] = (),
        product_titles: Sequence[Path] = (),
        results: Path | None = None,
    ) -> None:
        self.data, self.results = data, results
        self.tasks = [name for name in available_tasks(data.folder) if name in TASKS]
        if not set(self.tasks) & set(RANK_TASKS):
            raise InputError(data.folder, "holds no test file of a ranking task", "the benchmark_data folder")
        found = {VIDEO_AD: read_titles(titles, TITLE_LENGTH)}
        found["product"] = read_titles(product_titles, TITLE_LENGTH)
        self._shelves = {
            name: Shelf(data, task, found[name], target_counts(data.folder).get(name, {}))
            for name, task in {
                TASKS[task].catalogue: TASKS[task] for task in self.tasks if TASKS[task].kind == RANK
            }.items()
        }
        self.examples = {name: data.examples(TASKS[name]) for name in self.tasks}
        self._rows = {name: self._by_user(name) for name in self.tasks}

    def _by_user(self, task: str) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, example in enumerate(self.examples[task]):
            whose = example.user if example.uid is None else example.uid
            places.setdefault(str(self.data.users.show(whose)), []).append(place)
        return places

    def shelf(self, task: str) -> Shelf:
        """The items that a task's answers are from."""
        return self._shelves.get(TASKS[task].catalogue) or next(iter(self._shelves.values()))

    def places(self, task: str, user: str) -> list[int]:
        """Where a user's test rows are in ``examples``; raises `Unknown` where there is none."""
        if (places := self._rows.get(task, {}).get(user)) is None:
            known = ", ".join(list(self._rows.get(task, {}))[:3])
            raise Unknown(f"user {user[:80]!r} is in no test row of {task}; one of its users, as {known}")
        return places

    def users(self, task: str, query: str, limit: int) -> list[dict[str, Any]]:
        """Users of a task's test file whose id begins with ``query``, with how many items they have."""
        found = [(name, places[0]) for name, places in self._rows.get(task, {}).items() if name.startswith(query)]
        return [{"user": name, "items": len(self.examples[task][place].history)} for name, place in found[:limit]]

    def options(self, task: str, key: str) -> list[str]:
        """The values of a field of the test rows' metadata, as labels or keywords; the most frequent first."""
        found = self.fields(task, key) if task in self.tasks else {}
        return sorted(found, key=lambda name: (-len(found[name]), name))

    @functools.lru_cache(64)  # noqa: B019  a library lives as long as the process
    def fields(self, task: str, key: str) -> dict[str, set[int]]:
        """By the value of a field of the metadata, the places of a task's test rows."""
        places = {example.uuid: place for place, example in enumerate(self.examples.get(task, ()))}
        found: dict[str, set[int]] = {}
        for row in read_table(self.data.folder / TASKS[task].test_file, TEST_KINDS, strict=False).to_pylist():
            if row["uuid"] in places:
                value = read_test(row)[0].get(key)
                if isinstance(value, str | int) and value != "":
                    found.setdefault(str(value), set()).add(places[row["uuid"]])
        return found

    @functools.cached_property
    def _counted(self) -> dict[str, dict[str, Any]]:
        """The results of counting baselines that there are, by name."""
        if self.results is None:
            return {}
        files = {name: self.results / f"results_{name}" / "metrics.json" for name in QUICK}
        return {name: read_json(file) for name, file in files.items() if file.is_file()}

    @functools.cached_property
    def leaves_out_history(self) -> bool:
        """Whether the results are of recommendations without the items of the history, so that a page begins so."""
        return any(found.get("config", {}).get("exclude_seen") for found in self._counted.values())

    @functools.cached_property
    def baseline_name(self) -> str:
        """The counting baseline with the best headline of the next item among the results; `BEST_BASELINE` without."""
        best, value = BEST_BASELINE, -math.inf
        for name, result in self._counted.items():
            metrics = result.get("tasks", {})
            task = next((task for task in RANK_TASKS if task in metrics), None)
            if task and (found := metrics[task].get(TASKS[task].headline, -math.inf)) > value:
                best, value = name, found
        return best

    @functools.cached_property
    def trained(self) -> bool:
        """Whether there are training users, from whom a baseline learns."""
        return (self.data.folder / SEQUENCES).is_file()

    @functools.lru_cache(16)  # noqa: B019
    def baseline(self, task: str, name: str | None = None) -> Recommender | None:
        """A counting recommender (`baseline_name`) of a task; None where the data have no training users of it."""
        if not self.trained:
            return None
        try:
            training = load_training(self.data.folder, task, self.data.index(TASKS[task]))
        except InputError:
            return None
        return RECOMMENDERS[name or self.baseline_name](training, Options())


class Shelf:
    """The items of a catalogue: ids, SIDs, titles, search."""

    def __init__(self, data: BenchData, task: BenchTask, titles: dict[int, str], counts: dict[int, int]) -> None:
        self.data, self.index, self.titles = data, data.index(task), titles
        self.own = data.items if task.catalogue == VIDEO_AD else None
        pids = [pid for row in range(len(self.index.sids)) for pid in self.index.pids_at(row)]
        self.pids = sorted(pids, key=lambda pid: (-counts.get(pid, 0), pid))
        self._known = set(pids)
        self._by_id = {str(self.show(pid)): pid for pid in self.pids}
        self._by_title: dict[str, int] = {}
        for pid in self.pids:
            self._by_title.setdefault(titles.get(pid, "").lower(), pid)
        self._texts = pa.array([f"{titles.get(pid, '')} {self.show(pid)}" for pid in self.pids], pa.string())

    def show(self, pid: int) -> int | str:
        """The id that people know."""
        return self.own.show(pid) if self.own else pid

    def sid(self, pid: int) -> str:
        """The SID of an item as text; empty where it has none."""
        return self.item(pid)["sid"]

    @functools.lru_cache(1 << 16)  # noqa: B019  a library lives as long as the process
    def item(self, pid: int) -> dict[str, Any]:
        """An item as answers have it, not to be changed."""
        row = int(self.index.rows_naming(np.array([pid], np.int64))[0])
        sid = "" if row < 0 else self.data.spec.format(self.index.sids[row].tolist())
        return {"pid": self.show(pid), "title": self.titles.get(pid, ""), "sid": sid}

    def find(self, name: int | str) -> int:
        """The pid of an id, a SID or a title; of several the most popular. Raises `Unknown` where there is none."""
        for text in (str(name), str(name).strip()):  # an id is kept to the letter
            if text in self._by_id:
                return self._by_id[text]
        if codes := self.data.spec.parse(text):
            if pids := self.index.pids_of(codes[0]):
                return pids[0]
        elif text and (pid := self._by_title.get(text.lower())) is not None:
            return pid
        example = next(iter(self._by_id), "none")
        raise Unknown(f"{text[:80]!r} is no item of the catalogue; an id as {example}, a SID or a whole title")

    def search(self, query: str, limit: int) -> list[int]:
        """Items with all words of ``query`` in title, id or SID: those that begin with it first, then by popularity."""
        if codes := self.data.spec.parse(query):
            return self.index.pids_of(codes[0])[:limit]
        keep = None
        for word in query.split():
            has = pc.match_substring(self._texts, word, ignore_case=True)
            keep = has if keep is None else pc.and_(keep, has)
        if keep is None:
            return self.pids[:limit]
        begins = pc.starts_with(self._texts, query.strip(), ignore_case=True)
        first = pc.indices_nonzero(pc.and_(keep, begins)).to_pylist()[:limit]
        rest = pc.indices_nonzero(pc.and_not(keep, begins)).to_pylist()[:limit]
        return [self.pids[place] for place in (*first, *rest)][:limit]

    def ranked(self, recommender: Recommender, history: Sequence[int], k: int, skip: Collection[int]) -> list[int]:
        """The best ``k`` items of the catalogue by a recommender."""
        return [pid for pid in recommender.rank([list(history)], k, [skip])[0] if pid in self._known]
