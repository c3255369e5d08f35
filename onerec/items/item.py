"""What a search for items is asked for and what it finds, as plain data; no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

NORMALIZE = ("vocabulary", "level")


@dataclasses.dataclass(frozen=True)
class Item:
    """One found item: its codes, the log-probability of its tokens given the prompt (`onerec.items.search`), and its
    pids.

    ``pids``: the items that the SID names, most popular first. ``token_ids``, ``logprobs``: a token a layer with its
    own log-probability. Where no catalogue was searched there are tokens alone.
    """

    codes: tuple[int, ...]
    score: float
    pids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Draws:
    """Items are drawn, with replacement, instead of searched: one ``seed`` a prompt, so that its draws do not depend on
    its batch.
    """

    seeds: Sequence[int]
    temperature: float = 1.0


@dataclasses.dataclass(frozen=True)
class Prior:
    """What else is known of a prompt's next item: log-probabilities of SIDs, by their row in `ItemIndex.sids`.

    ``rows`` int64 [n] (rising, each once), ``logs`` float32 [n], and ``rest``, that of every other SID: a floor, so
    that what the prior does not know is not ruled out. What all SIDs have in common, a normaliser, changes no ranking.
    """

    rows: np.ndarray
    logs: np.ndarray
    rest: float

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The log-probability of each of ``rows``, float32."""
        if not len(self.rows):
            return np.full(len(rows), self.rest, np.float32)
        place = np.searchsorted(self.rows, rows).clip(max=len(self.rows) - 1)
        return np.where(self.rows[place] == rows, self.logs[place], np.float32(self.rest))

    def best(self, n: int) -> np.ndarray:
        """The rows of the ``n`` SIDs that it likes most, rising; of equal ones the first."""
        return np.sort(self.rows[np.argsort(-self.logs, kind="stable")[:n]])


def ranked_with_prior(items: Sequence[Item], logs: np.ndarray, weight: float, width: int) -> list[Item]:
    """The best ``width`` of ``items`` by ``score + weight · log``, which is then their score; ``logs`` float [n].

    Equal scores are ordered by SID.
    """
    scores = [item.score + weight * log for item, log in zip(items, logs.tolist(), strict=True)]
    best = sorted(range(len(items)), key=lambda place: (-scores[place], items[place].codes))[:width]
    return [dataclasses.replace(items[place], score=scores[place]) for place in best]


def batches_by_length(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices grouped so that a padded batch holds at most ``token_budget`` tokens, longest first, ties in order."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
