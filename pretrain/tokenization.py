"""Shards to token ids: rows are rendered and tokenized once; bad rows are counted by reason."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from onerec import __version__
from onerec.content import files_digests
from onerec.errors import InputError
from onerec.flags import LOCAL
from onerec.folders import atomic_path
from onerec.records import read_record, record_batches
from onerec.render import Renderer, renderer_of
from onerec.run import progress
from onerec.sid import SidSpec
from onerec.workers import map_in_order
from pretrain.dataset_config import DatasetConfig
from pretrain.pieces import PieceTokenizer
from pretrain.tokens import Part, Samples, TokenFolder, Tokens, collect

TOO_LONG = "longer than max_sample_length"
NOTHING_LEARNT = "no learnt token"
CUT = "cut to max_sample_length"  # counted beside those that are left out; their beginnings stay


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to tokenize one shard."""

    shard: Path
    tokenizer_dir: str
    model_dir: str
    spec: SidSpec | None
    only_assistant_loss: bool
    add_think_pattern: bool
    sample_limit: int
    cut_long: bool = False
    kept: Path | None = dataclasses.field(default=None, repr=False)  # where its result is kept

    def foreign(self, token: str) -> NoReturn:
        """Raise the `InputError` of an itemic token that the model does not hold."""
        holds = "no SIDs" if self.spec is None else f"codebooks of {', '.join(map(str, self.spec.codebook_sizes))}"
        what = f"has the itemic token {token}, which the vocabulary of {self.model_dir} does not hold (it has {holds})"
        raise InputError(self.shard, what, "expand the base model with the sid_spec.json that made this data")


def _tokenize_shard(job: Job) -> Part:
    tokenizer, renderer = PieceTokenizer(job.tokenizer_dir, job.foreign), renderer_of(job.model_dir)
    ids, learn, lengths = array("i"), bytearray(), []
    sources: list[str] = []
    bad: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows = 0
    for row in (row for batch in record_batches(job.shard) for row in batch.to_pylist()):
        rows += 1
        wrong, content = read_record(row)
        if wrong:
            bad[wrong] += 1
            continue
        sample_ids, mask = _encode(content, tokenizer, renderer, job)
        if job.cut_long and len(sample_ids) > job.sample_limit:
            sample_ids, mask = sample_ids[: job.sample_limit], mask[: job.sample_limit]
            left_out[CUT] += 1
        if len(sample_ids) > job.sample_limit:
            left_out[TOO_LONG] += 1
        elif True not in mask[1:]:
            left_out[NOTHING_LEARNT] += 1
        else:
            ids.extend(sample_ids)
            learn.extend(mask)
            lengths.append(len(sample_ids))
            sources.append(row["source"])
    flat, learnt = np.array(ids, dtype=np.int32), np.frombuffer(learn, dtype=bool)
    return Part(flat, learnt, np.array(lengths, dtype=np.int64), sources, rows, bad, left_out)


def _encode(
    content: list[dict[str, str]] | str, tokenizer: PieceTokenizer, renderer: Renderer, job: Job
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation or of a whole text, and which of them are learnt."""
    if isinstance(content, str):
        ids = tokenizer(content + renderer.text_end, return_offsets_mapping=False)["input_ids"]
        return ids, [True] * len(ids)
    return renderer.encode(content, tokenizer, job.add_think_pattern, job.only_assistant_loss)


def tokenize_shards(
    shards: Sequence[Path],
    config: DatasetConfig,
    model_dir: Path,
    spec: SidSpec | None,
    token_dir: Path | None = None,
    runner: str = LOCAL,
) -> Samples:
    """Tokenize every row of ``shards``. The result does not depend on the workers, ``token_dir`` or ``runner``.

    Raises `InputError` for a shard that cannot be read and for an itemic token that ``spec`` does not have.
    """
    folders = str(config.base_model_dir or model_dir), str(model_dir)
    masks = config.only_assistant_loss, config.add_think_pattern
    jobs = [Job(shard, *folders, spec, *masks, config.sample_limit, config.cut_long_samples) for shard in shards]
    if token_dir is None:
        return collect(_parts(jobs, config.num_workers, runner), Tokens())
    named = NamedJobs(jobs, Path(token_dir) / ".shards", config.num_workers, runner)
    samples = TokenFolder(Path(token_dir)).samples(named.key, named.parts)
    named.remove()
    return samples


class NamedJobs:
    """Jobs whose results are kept in ``folder`` until all are there, so that a run that was stopped goes on.

    A name is made of all that the tokens depend on: the contents of shard and tokenizer, and the settings.
    """

    def __init__(self, jobs: Sequence[Job], folder: Path, num_workers: int = 0, runner: str = LOCAL) -> None:
        self._jobs, self._folder, self._num_workers, self._runner = jobs, folder, num_workers, runner
        self._names: list[str] = []

    def key(self) -> str:
        """A name for the tokens of all jobs.

        The shards are read whole, since footers, sizes, paths and times do not tell two of them apart. That is a minute
        for 100 GB on one machine; tokenizing them takes hours there.
        """
        first = self._jobs[0]
        settings = dataclasses.replace(first, shard=Path(), tokenizer_dir="", model_dir="")
        files = [Path(first.tokenizer_dir) / "tokenizer.json", *(job.shard for job in self._jobs)]
        if self._runner == LOCAL:
            tokenizer, *shards = files_digests(files, "compare data")
        else:
            named = progress(files, "compare data", unit="file")
            tokenizer, *shards = map_in_order(_file_digest, named, self._num_workers or None, runner=self._runner)
        about = (__version__, renderer_of(first.model_dir).model_type, settings)
        self._names = [_digest((*about, [tokenizer, shard])) for shard in shards]
        return _digest((*about, [tokenizer, *shards]))

    def parts(self) -> Iterator[Part]:
        """The results in order; those that an earlier run has left are not made again."""
        pairs = zip(self._jobs, self._kept(), strict=True)
        jobs = [dataclasses.replace(job, kept=path) for job, path in pairs]
        return _parts(jobs, self._num_workers, self._runner)

    def remove(self) -> None:
        """Remove what is kept: all of it has been taken."""
        for path in self._kept():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or another run's are there
            self._folder.rmdir()

    def _kept(self) -> list[Path]:
        return [self._folder / f"{name}.npz" for name in self._names]


def _file_digest(path: Path) -> str:
    return files_digests([path])[0]


def _digest(what: object) -> str:
    return hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()


def _tokenized(job: Job) -> Part:
    """The part of a job, from the file in which it is kept or from its shard."""
    if job.kept is None:
        return _tokenize_shard(job)
    # Another run that has taken all may remove it meanwhile, and a machine that died may have left it cut short.
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return Part.read(job.kept)
    part = _tokenize_shard(job)
    with atomic_path(job.kept) as temporary, open(temporary, "wb") as file:
        part.write(file)
    return part


def _parts(jobs: Sequence[Job], num_workers: int, runner: str) -> Iterator[Part]:
    """The jobs' results in order; ``num_workers`` 0: this process, or all cores of a cluster."""
    if runner == LOCAL:
        num_workers = min(num_workers, len(jobs), os.cpu_count() or 1)
    # Workers load neither torch nor transformers, so that starting them is cheap.
    return map_in_order(_tokenized, progress(jobs, "tokenize", unit="shard"), num_workers or None, runner=runner)
