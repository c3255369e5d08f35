"""Order and samples of rows from what the rows are: keys by seed and uuid, exact uniform samples of a stream."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MASK = (1 << 64) - 1
_HYPERGEOMETRIC = 10**9  # NumPy draws with fewer of either kind


def mix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): uint64 to well-spread uint64, one to one."""
    z = values.astype(np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def seeded(values: np.ndarray, seed: int) -> np.ndarray:
    """Keys uint64 of integer ``values`` under a seed: sorting by them is a shuffle."""
    salt = mix64(np.array([(seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) & _MASK], np.uint64))
    return mix64(np.asarray(values).astype(np.int64).view(np.uint64) + salt)


def uuid_keys(uuids: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(keys uint64, valid bool) of a string array of uuids; the key depends on the uuid and the seed alone.

    A text that is not a uuid in the usual form (8-4-4-4-12 hexadecimal digits) is not valid and has key 0.
    """
    halves, valid = uuid_halves(uuids)
    high = seeded(halves[:, 0].view(np.int64), seed)
    return np.where(valid, mix64(high ^ halves[:, 1]), np.uint64(0)), valid


def uuid_halves(uuids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(uuids as uint64 [n, 2], valid bool) of a string array; `uuid_keys` says what is valid, others are 0."""
    uuids = uuids.cast(pa.string())
    pattern = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
    valid = pc.match_substring_regex(uuids, pattern).fill_null(False)
    texts = pc.utf8_lower(uuids.filter(valid))
    halves = np.zeros((len(uuids), 2), np.uint64)
    valid = valid.to_numpy(zero_copy_only=False)
    if len(texts):
        data = np.frombuffer(texts.buffers()[2], np.uint8)[: 36 * len(texts)].reshape(-1, 36)
        digits = np.delete(data, [8, 13, 18, 23], axis=1)
        nibbles = np.where(digits >= ord("a"), digits - (ord("a") - 10), digits - ord("0")).astype(np.uint8)
        halves[valid] = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).reshape(-1, 2, 8).copy().view(">u8")[..., 0]
    return halves, valid


class StreamSample:
    """A uniform sample of exactly ``wanted`` of ``total`` rows that pass in batches, in constant memory.

    How many rows of a batch are taken is hypergeometric given what is left, so every subset is equally likely.
    """

    def __init__(self, total: int, wanted: int, rng: np.random.Generator) -> None:
        self._left, self._wanted, self._rng = total, min(wanted, total), rng

    def take(self, n: int) -> np.ndarray:
        """Places, sorted, that are taken of the next ``n`` rows."""
        if self._wanted == self._left:
            count = n
        elif self._wanted == 0 or n == 0:
            count = 0
        else:
            count = self._count(n)
        self._left -= n
        self._wanted -= count
        return np.arange(n) if count == n else np.sort(self._rng.choice(n, count, replace=False))

    def _count(self, n: int) -> int:
        """How many of the next ``n`` rows are taken."""
        rest = self._left - self._wanted
        if max(self._wanted, rest) < _HYPERGEOMETRIC:
            return int(self._rng.hypergeometric(self._wanted, rest, n))
        # The same distribution: n different places among all that are left, of which the first are those taken.
        return int((self._rng.choice(self._left, n, replace=False, shuffle=False) < self._wanted).sum())


def batch_rows(bytes_per_row: float, target: int = 8 << 20) -> int:
    """Rows of a batch of about ``target`` bytes."""
    return int(np.clip(target / max(bytes_per_row, 1), 16, 8192))


def chunks(n: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of consecutive pieces of at most ``size``."""
    for start in range(0, n, size):
        yield start, min(start + size, n)
