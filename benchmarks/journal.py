"""What makes a killed evaluation go on: answers are written as they come and found again by their content.

    results_<name>/run.json               which model and which data the folder is of
    results_<name>/progress/<phase>.jsonl  one line a prompt, {"key": …, "value": …}, gone when the metrics are written

A key is a hash of the prompt's tokens and of every setting that its result depends on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.backends.base import NONE, Also, Backend, Excluded, Finished, Known, Sampling
from benchmarks.results import METRICS
from benchmarks.tasks import fingerprint
from onerec.catalog import ItemIndex
from onerec.content import files_digest, model_digest
from onerec.errors import InputError
from onerec.folders import remove_folder
from onerec.items.item import Item
from onerec.run import progress, read_json, write_json
from onerec.sid import SidSpec

RUN, PROGRESS = "run.json", "progress"


def open_journal(args: Any, folder: Path, tasks: Sequence[str]) -> Journal:
    """The journal of evaluate.py's flags for ``tasks``, whose test files are those of the data."""
    if not (args.model_path / "config.json").exists():
        right = "give a folder with config.json and *.safetensors"
        raise InputError(args.model_path, "is not a checkpoint folder", right)
    data = {name: fingerprint(args.data_dir, name) for name in tasks}
    prior = [files_digest([path]) for path in (args.prior, args.product_prior) if path]
    return Journal(folder, model_digest(args.model_path), data, args.data_version, args.overwrite, " ".join(prior))


def work_keys(settings: dict[str, Any], prompts: Iterable[Sequence[Any]]) -> list[str]:
    """A key a prompt (token ids, or a list of such): what was asked, of what, and how."""
    head = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    keys = []
    for prompt in prompts:
        digest = head.copy()
        digest.update(np.asarray(prompt, dtype=np.int64).tobytes())
        keys.append(digest.hexdigest()[:32])
    return keys


class Journal:
    """The results folder of a run that may be stopped at any moment."""

    def __init__(
        self,
        folder: Path,
        model: str,
        data: dict[str, str],
        data_version: str = "",
        overwrite: bool = False,
        prior: str = "",
    ) -> None:
        """``model``: `model_digest`; ``data``: a digest a test file; ``prior``: those of an item prior, where there is
        one. Raises `InputError` where the folder is of others.

        Data that were mended after a run that failed are no others: it has no metrics, and a prompt that is another
        one now is another key. With ``overwrite`` what others left there is thrown away when the first phase opens.
        """
        self.folder, self.of_others = folder, False
        self.identity = {"model": model, "data_version": data_version, "data": data}
        if prior:
            self.identity["prior"] = prior
        if (folder / RUN).exists():
            try:
                self.identity["data"] = self._refuse_others(self.identity) | data
            except InputError:
                if not overwrite:
                    raise
                self.of_others = True
        self._begun = False

    def _refuse_others(self, identity: dict[str, Any]) -> dict[str, str]:
        old, right = read_json(self.folder / RUN), "choose another --result_name, or give --overwrite"
        data = old.get("data", {}) if isinstance(old, dict) else None
        if not isinstance(data, dict):
            raise InputError(self.folder / RUN, "is not what evaluate.py wrote", right)
        if old.get("model") != identity["model"]:
            what = f"holds results of another model ({old.get('model')}, not {identity['model']})"
            raise InputError(self.folder, what, right)
        for name, digest in identity["data"].items():
            if data.get(name, digest) != digest and (self.folder / METRICS).exists():
                raise InputError(self.folder, f"holds results of other data ({name} differs)", right)
        if old.get("prior") != identity.get("prior"):
            raise InputError(self.folder, "holds results of the model with another item prior, or without one", right)
        if old.get("data_version", "") != identity["data_version"]:
            what = f"holds results of data version {old.get('data_version')!r}, not {identity['data_version']!r}"
            raise InputError(self.folder, what, right)
        return data

    def phase(self, label: str) -> Phase:
        """The results so far of the phase ``label``, open for more."""
        if not self._begun:  # a run that is refused before its first prompt leaves the folder as it was
            if self.of_others:
                remove_folder(self.folder)
            write_json(self.folder / RUN, self.identity)
            self._begun = True
        name = re.sub(r"[^\w.-]+", "_", label).strip("_")
        return Phase(self.folder / PROGRESS / f"{name}.jsonl")

    def finish(self) -> None:
        """The run's metrics are written: its progress is not needed any more."""
        shutil.rmtree(self.folder / PROGRESS, ignore_errors=True)


class Phase:
    """One file of results. A line that a kill cut off is dropped when the file is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")  # noqa: SIM115 (closed by `close`)
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                key, value = (entry := json.loads(line))["key"], entry["value"]
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self.known[str(key)] = value
        self._file.truncate(whole)

    def write(self, entries: Iterable[tuple[str, Any]]) -> None:
        """Append results; they are on the disk when this returns."""
        lines = (json.dumps({"key": key, "value": value}, separators=(",", ":")) + "\n" for key, value in entries)
        self._file.write("".join(lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JournaledBackend:
    """The backend ``inner`` in one phase of a run: it is asked only for what the phase does not know yet.

    The first batch holds the answers that were written before; those that ``inner`` finishes are written as they come.
    Without a ``phase`` nothing is known or written. ``name`` tells backends apart whose answers may differ.
    """

    def __init__(self, inner: Backend, phase: Phase | None, label: str, name: str) -> None:
        self.inner, self.phase, self.label, self.name = inner, phase, label, name
        self.context = inner.context

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Collection[int],
        sampling: Sampling,
        done: Known = NONE,
    ) -> Finished[list[int]]:
        """See `Backend.generate`."""
        settings = {"max": max_tokens, "stop": sorted(stop), "stream": 0, **dataclasses.asdict(sampling)}
        arguments = (prompts, max_tokens, stop, sampling)
        return self._answers("generate", settings, prompts, lambda known: self.inner.generate(*arguments, known | done))

    def rank(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        spec: SidSpec,
        num_beams: int,
        exclude: Excluded = None,
        normalize: str = "vocabulary",
        done: Known = NONE,
        also: Also = None,
    ) -> Finished[list[Item]]:
        """See `Backend.rank`."""
        settings = {"beams": num_beams, "normalize": normalize, "sids": index.digest}
        banned = [()] * len(prompts) if exclude is None else [sorted(map(tuple, sids)) for sids in exclude]
        asked = [
            [*prompt, -1, *(code for sid in sids for code in sid)] for prompt, sids in zip(prompts, banned, strict=True)
        ]
        if also is not None:
            asked = [[*ids, -2, *rows.tolist()] for ids, rows in zip(asked, also, strict=True)]
        arguments = (prompts, index, spec, num_beams, exclude, normalize)

        def unpack(value: list[Any]) -> list[Item]:
            return [Item(tuple(codes), score, tuple(index.pids_of(tuple(codes)))) for codes, score in value]

        return self._answers(
            "rank",
            settings,
            asked,
            lambda known: self.inner.rank(*arguments, known | done, also),
            pack=lambda found: [[list(h.codes), h.score] for h in found],
            unpack=unpack,
        )

    def next_logprobs(
        self, prompts: Sequence[list[int]], tokens: Sequence[int], done: Known = NONE
    ) -> Finished[list[float]]:
        """See `Backend.next_logprobs`."""
        settings = {"tokens": list(tokens)}
        return self._answers(
            "next", settings, prompts, lambda known: self.inner.next_logprobs(prompts, tokens, known | done)
        )

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int], done: Known = NONE) -> Finished[float]:
        """See `Backend.tail_logprobs`."""
        asked = [[count, *ids] for count, ids in zip(last, texts, strict=True)]
        return self._answers("tail", {}, asked, lambda known: self.inner.tail_logprobs(texts, last, known | done))

    def _answers(
        self,
        kind: str,
        settings: dict[str, Any],
        asked: Sequence[Sequence[int]],
        ask: Callable[[Known], Finished[Any]],
        pack: Callable[[Any], Any] = lambda value: value,
        unpack: Callable[[Any], Any] = lambda value: value,
    ) -> Finished[Any]:
        """What the phase knows of ``asked``, then the answers to ``ask``, given the indices of what is known."""
        if self.phase is None:
            yield from progress(ask(NONE), self.label, len(asked), "sample", size=len)
            return
        keys = work_keys({"kind": kind, **settings, "backend": self.name}, asked)
        try:
            known = {i: unpack(self.phase.known[key]) for i, key in enumerate(keys) if key in self.phase.known}
            yield list(known.items())
            label = f"{self.label} (after {len(known):,} done before)" if known else self.label
            for batch in progress(ask(known.keys()), label, len(asked) - len(known), "sample", size=len):
                self.phase.write((keys[i], pack(value)) for i, value in batch)
                yield batch
        finally:
            self.phase.close()
