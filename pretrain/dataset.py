"""The training data: tokenized samples, shuffled by seed and epoch and packed into rows of ``max_length`` tokens.

The whole plan (which sample stands in which row, for all epochs) is made before the first step, from the config and the
seed alone. So a run on any number of processes sees the same rows, and a resumed run goes on at the exact next one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from onerec.errors import InputError
from onerec.flags import LOCAL
from onerec.model_folder import check_itemic_tokens, read_tokenizer
from onerec.run import Manifest
from onerec.sid import SidSpec
from pretrain.dataset_config import DatasetConfig, list_shards
from pretrain.tokenization import CUT, tokenize_shards
from pretrain.tokens import Samples

IGNORE = -100
# The plan of a run stands in memory, some 300 bytes a packed row.
_MOST_ROWS = 50_000_000
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pack:
    """One packed row: samples in order; ``length`` cuts the last of them to fill the row (None: all whole)."""

    samples: np.ndarray
    last_length: int | None = None


def shuffled(shard_of: np.ndarray, buffer_size: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the samples in an epoch, int64 [n]: shards shuffled, then a shuffle buffer of ``buffer_size`` samples.

    ``shard_of`` int [n], ascending. The next sample is drawn from the buffer at random and its place refilled with
    the next one read. A buffer that holds everything gives a plain permutation.
    """
    rng = np.random.default_rng([seed, epoch])
    n = len(shard_of)
    if buffer_size >= n:
        return rng.permutation(n)
    shards = np.unique(shard_of)
    first, last = np.searchsorted(shard_of, shards), np.searchsorted(shard_of, shards, side="right")
    stream = np.concatenate([np.arange(first[i], last[i]) for i in rng.permutation(len(shards))])
    buffer = stream[:buffer_size].copy()
    draws = rng.integers(0, buffer_size, n - buffer_size)
    order = np.empty(n, dtype=np.int64)
    for i, place in enumerate(draws):
        order[i] = buffer[place]
        buffer[place] = stream[buffer_size + i]
    order[n - buffer_size :] = rng.permutation(buffer)
    return order


def weighted(source: np.ndarray, weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The samples of an epoch, int64, ascending: sample ``i`` comes ``weights[source[i]]`` times, a fraction by lot."""
    wanted = weights[source]
    times = np.floor(wanted)
    if (times != wanted).any():
        times += np.random.default_rng([seed, epoch, 1]).random(len(source)) < wanted - times
    return np.repeat(np.arange(len(source)), times.astype(np.int64))


def pack(order: np.ndarray, lengths: np.ndarray, max_length: int, cut_to_pad: bool) -> Iterator[Pack]:
    """Fill rows of at most ``max_length`` tokens with the samples in ``order``.

    A sample that does not fit begins the next row or, with ``cut_to_pad``, is cut to fill this one exactly.
    """
    row: list[int] = []
    used = 0
    # A block at a time: numbers of Python take ten times the memory of an array's.
    blocks = (order[begin : begin + _BLOCK] for begin in range(0, len(order), _BLOCK))
    for sample, length in (pair for part in blocks for pair in zip(part.tolist(), lengths[part].tolist(), strict=True)):
        if used + length > max_length:
            room = max_length - used
            if cut_to_pad and room > 1:
                yield Pack(np.array([*row, sample]), room)
                row, used = [], 0
                continue
            yield Pack(np.array(row))
            row, used = [], 0
        row.append(sample)
        used += length
    if row:
        yield Pack(np.array(row))


class PackedDataset:
    """Packed rows of all epochs as a map-style dataset; ``dataset[i]`` is row ``i`` as NumPy arrays.

    Args:
        samples: tokenized samples. config: packing and shuffling. seed: with the epoch, decides the order.
        world_size: rows without loss fill them up to a multiple of it, so that every process gets as many.
        steps: optimizer steps wanted (of ``world_size * accumulation`` rows), over as many epochs as that needs; None
            takes ``config.num_epochs``.
    """

    def __init__(
        self,
        samples: Samples,
        config: DatasetConfig,
        seed: int,
        world_size: int = 1,
        accumulation: int = 1,
        steps: int | None = None,
    ) -> None:
        self.samples, self.config, self.seed = samples, config, seed
        self._weights = np.array([dict(config.source_weights).get(name, 1.0) for name in samples.source_names])
        self.rows: list[Pack | None] = []
        self.epoch_ends: list[int] = []
        wanted = None if steps is None else steps * world_size * accumulation
        epoch = 0
        while epoch < config.num_epochs if wanted is None else len(self.rows) < wanted:
            self.rows += self._epoch(epoch)
            planned = wanted or len(self.rows) * config.num_epochs // (epoch + 1)
            if not self.rows or planned > _MOST_ROWS:
                what = f"{len(self.rows):,} packed rows an epoch, {planned:,} in all"
                raise InputError("the training", f"has {what}", f"from 1 to {_MOST_ROWS:,}: fewer steps or epochs")
            self.epoch_ends.append(len(self.rows))
            epoch += 1
        if wanted is not None:
            del self.rows[wanted:]
        self.rows += [None] * (-len(self.rows) % world_size)

    def _epoch(self, epoch: int) -> Iterator[Pack]:
        seed = self.seed if self.config.shuffle_seed is None else self.config.shuffle_seed
        chosen = weighted(self.samples.source, self._weights, seed, epoch)
        order = chosen[shuffled(self.samples.shard[chosen], self.config.local_shuffle_buffer_size, seed, epoch)]
        return pack(order, self.samples.lengths, self.config.max_length, self.config.cut_to_pad)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """``input_ids``, ``position_ids``, ``labels``, ``source`` int64 [T], ``cu_seq_lens`` int32 [n + 1] of a row."""
        row = self.rows[index] or Pack(np.zeros(1, np.int64))
        starts, ends = self.samples.starts[row.samples], self.samples.starts[row.samples + 1]
        lengths = ends - starts
        if row.last_length is not None:
            lengths[-1] = min(lengths[-1], row.last_length)
        # One index into the flat tokens gathers the whole row: where each sample starts, plus the place within it. A
        # loop over the samples of a row would be slower than the training step of a small model.
        borders = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(borders[-1]) - np.repeat(borders[:-1], lengths)
        places = positions + np.repeat(starts, lengths)
        ids = self.samples.ids[places].astype(np.int64)
        # Nothing predicts the first token of a sample, so it carries no loss; nor does a row that only fills up an
        # epoch.
        learn = self.samples.learn[places] & (positions > 0) & (self.rows[index] is not None)
        if self.config.full_attention:
            positions, borders = np.arange(borders[-1]), borders[[0, -1]]
        return {
            "input_ids": ids,
            "position_ids": positions,
            "labels": np.where(learn, ids, IGNORE),
            "cu_seq_lens": borders.astype(np.int32),
            "source": np.repeat(self.samples.source[row.samples].astype(np.int64), lengths),
        }

    def sources(self, index: int) -> list[str]:
        """Names of the sources that stand in a row."""
        row = self.rows[index]
        numbers = [] if row is None else np.unique(self.samples.source[row.samples])
        return [self.samples.source_names[number] for number in numbers]

    def summary(self) -> dict[str, Any]:
        """Samples, tokens, learnt tokens and rows, by source as well, for log and manifest."""
        lengths = self.samples.lengths
        per_source = np.bincount(self.samples.source, weights=lengths, minlength=len(self.samples.source_names))
        return {
            "samples": len(self.samples),
            "tokens": int(lengths.sum()),
            "learnt_tokens": self.samples.learnt,
            "packed_rows": len(self.rows),
            "epochs": len(self.epoch_ends),
            "tokens_by_source": {
                name: int(count) for name, count in zip(self.samples.source_names, per_source, strict=True)
            },
        }

    def fingerprint(self) -> str:
        """A digest of the tokens and of their order: two datasets with the same digest train the same way."""
        config = dataclasses.replace(self.config, sources=(), num_workers=0, base_model_dir=None)
        what = repr((self.samples.digest, self.seed, config))
        return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def collate(features: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """One packed row to tensors [1, T], with the borders as `FlashAttentionKwargs` name them."""
    import torch

    if len(features) != 1:
        raise ValueError(f"a batch is one packed row, not {len(features)}")
    row = features[0]
    names = [name for name in ("input_ids", "position_ids", "labels", "source") if name in row]
    borders, longest = torch.from_numpy(row["cu_seq_lens"]), int(np.diff(row["cu_seq_lens"]).max())
    lengths = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    return {name: torch.from_numpy(row[name])[None] for name in names} | lengths


def load_samples(
    config: DatasetConfig,
    config_path: Path,
    model_dir: Path,
    spec: SidSpec | None,
    manifest: Manifest,
    max_bad_ratio: float,
    token_dir: Path | None = None,
    runner: str = LOCAL,
) -> Samples:
    """Read and tokenize what ``config`` names, check it against the model, and note it all in ``manifest``.

    ``token_dir``: where the tokens go; None keeps them in memory. ``runner``: what tokenizes (`onerec.workers`).

    Raises `InputError` for a shard that is missing or cut short, an itemic token that the model does not hold, an
    ``itemic_id_range`` that is not the model's, more than ``max_bad_ratio`` bad rows, or nothing left to train on.
    """
    if spec is not None:
        tokenizer_dir = Path(config.base_model_dir or model_dir)
        check_itemic_tokens(tokenizer_dir, spec, read_tokenizer(tokenizer_dir))
        if config.itemic_id_range not in (None, spec.id_range):
            what = f"itemic_id_range is {list(config.itemic_id_range)}, that of {model_dir} is {list(spec.id_range)}"
            raise InputError(config_path, what, "leave the key out: it is read from the checkpoint")
    shards = list_shards(config.sources)
    samples = tokenize_shards(shards, config, model_dir, spec, token_dir, runner)
    for shard, count in zip(shards, np.bincount(samples.shard, minlength=len(shards)), strict=True):
        manifest.input(shard, int(count))
    manifest.extra["cut_samples"] = samples.left_out.pop(CUT, 0)
    for reason, count in sorted((samples.bad + samples.left_out).items()):
        manifest.drop(reason, count)
    manifest.check_bad_ratio(config_path, samples.bad.total(), samples.rows, max_bad_ratio)
    check_weights(config, config_path, samples)
    if not len(samples):
        what = f"leaves no sample to train on out of {samples.rows} rows ({manifest.dropped_text()})"
        right = f"samples must have at most {config.sample_limit} tokens and something to learn"
        raise InputError(config_path, what, right)
    return samples


def check_weights(config: DatasetConfig, config_path: Path, samples: Samples) -> None:
    """Raise `InputError` for a weight of a source that the data do not have, or weights that leave nothing."""
    weights, names = dict(config.source_weights), samples.source_names
    if foreign := sorted(set(weights) - set(names)):
        right = f"the data have {', '.join(names) or 'no sample'}"
        raise InputError(config_path, f"source_weights names {foreign[0]}", right)
    if names and not any(weights.get(name, 1.0) for name in names):
        raise InputError(config_path, "source_weights leave no sample", "at least one above 0")
