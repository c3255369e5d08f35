"""Shards to token ids: rows are rendered and tokenized once; bad rows are counted by reason."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onerec import __version__
from onerec.content import files_digests
from onerec.errors import InputError
from onerec.model_folder import read_tokenizer
from onerec.records import read_record, record_batches
from onerec.render import Renderer, renderer_of
from onerec.run import progress
from onerec.sid import LAYER_LETTERS, SidSpec
from onerec.workers import map_in_order
from pretrain.tokens import Memory, Part, Samples, TokenFolder, collect

TOO_LONG = "longer than max_sample_length"
NOTHING_LEARNT = "no learnt token"
CUT = "cut to max_sample_length"  # counted beside those that are left out; their beginnings stay


class FastTokenizer:
    """``tokenizer.json`` behind the one call that `Renderer.encode` makes, without loading transformers."""

    def __init__(self, model_dir: str | Path) -> None:
        self.backend = read_tokenizer(model_dir)

    def __call__(
        self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = True
    ) -> dict[str, list]:
        coded = self.backend.encode(text, add_special_tokens=add_special_tokens)
        return (
            {"input_ids": coded.ids, "offset_mapping": coded.offsets}
            if return_offsets_mapping
            else {"input_ids": coded.ids}
        )


@functools.cache
def itemic_pattern() -> re.Pattern[str]:
    """What looks like an itemic token of any layer and code."""
    grammar = SidSpec((1,) * len(LAYER_LETTERS))
    halves = [grammar.token(layer, 0).split("0") for layer in range(grammar.n_layers)]
    return re.compile("|".join(rf"{re.escape(before)}\d+{re.escape(after)}" for before, after in halves))


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


def _tokenizer(job: Job) -> FastTokenizer:
    """The job's tokenizer; an itemic token that the model does not hold ends the run, and names the job's shard."""
    from pretrain.pieces import PieceTokenizer

    def foreign(token: str) -> None:
        raise _foreign_error(job, token)

    return PieceTokenizer(job.tokenizer_dir, foreign)


def _tokenize_shard(job: Job) -> Part:
    tokenizer, renderer = _tokenizer(job), renderer_of(job.model_dir)
    ids, learn, lengths = array("i"), bytearray(), []
    sources: list[str] = []
    bad: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rows = 0
    for row in _rows(job.shard):
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
    return Part(
        np.array(ids, dtype=np.int32),
        np.frombuffer(learn, dtype=bool),
        np.array(lengths, dtype=np.int64),
        sources,
        rows,
        bad,
        left_out,
    )


def _foreign_error(job: Job, token: str) -> InputError:
    holds = "no SIDs" if job.spec is None else f"codebooks of {', '.join(map(str, job.spec.codebook_sizes))}"
    return InputError(
        job.shard,
        f"has the itemic token {token}, which the vocabulary of {job.model_dir} does not hold (it has {holds})",
        "expand the base model with the sid_spec.json that made this data",
    )


def _encode(
    content: list[dict[str, str]] | str, tokenizer: FastTokenizer, renderer: Renderer, job: Job
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation or of a whole text, and which of them are learnt."""
    if isinstance(content, str):
        ids = tokenizer(content + renderer.text_end, return_offsets_mapping=False)["input_ids"]
        return ids, [True] * len(ids)
    return renderer.encode(content, tokenizer, job.add_think_pattern, job.only_assistant_loss)


def _rows(shard: Path) -> Iterator[dict[str, Any]]:
    for batch in record_batches(shard):
        yield from batch.to_pylist()


def tokenize_shards(
    shards: Sequence[Path],
    tokenizer_dir: str | Path,
    spec: SidSpec | None,
    only_assistant_loss: bool,
    add_think_pattern: bool,
    sample_limit: int,
    cut_long: bool = False,
    num_workers: int = 0,
    model_dir: str | Path | None = None,
    token_dir: str | Path | None = None,
) -> Samples:
    """Tokenize every row of ``shards``. The result does not depend on ``num_workers`` or ``token_dir``.

    Raises `InputError` for a shard that cannot be read and for an itemic token that ``spec`` does not have.
    """
    jobs = [
        Job(
            Path(shard),
            str(tokenizer_dir),
            str(model_dir or tokenizer_dir),
            spec,
            only_assistant_loss,
            add_think_pattern,
            sample_limit,
            cut_long,
        )
        for shard in shards
    ]
    if token_dir is None:
        return collect(_parts(jobs, num_workers), Memory())
    return TokenFolder(Path(token_dir)).samples(lambda: _key(jobs), lambda: _parts(jobs, num_workers))


def _key(jobs: Sequence[Job]) -> str:
    """A name for the tokens of ``jobs``: from the contents of shards and tokenizer, and from the settings.

    All of the shards is read, at the pace of the disk: a minute for 100 GB at 1.7 GB/s, which two cores reach. What Parquet files
    say of themselves (sizes, smallest and largest values) stays the same where one SID is put in another's place, and paths and
    times differ between copies of the same data. One process a node asks; tokenizing the same takes hours.
    """
    settings = dataclasses.replace(jobs[0], shard=Path(), tokenizer_dir="", model_dir="")
    files = [Path(jobs[0].tokenizer_dir) / "tokenizer.json", *(job.shard for job in jobs)]
    family = renderer_of(jobs[0].model_dir).model_type
    what = repr((__version__, family, settings, files_digests(files, "compare data")))
    return hashlib.blake2b(what.encode(), digest_size=12).hexdigest()


def _parts(jobs: Sequence[Job], num_workers: int) -> Iterator[Part]:
    """The shards' samples, in order."""
    num_workers = min(num_workers, len(jobs), os.cpu_count() or 1)
    shown = progress(jobs, "tokenize", unit="shard")
    if num_workers <= 1:
        yield from map(_tokenize_shard, shown)
        return
    # Workers load neither torch nor transformers, so that starting them is cheap.
    yield from map_in_order(_tokenize_shard, shown, num_workers)
