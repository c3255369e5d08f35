"""The item stage of a rollout, for one prompt: beam search or sampling over the SIDs that exist, level by level.

`ItemSearch` holds the beams and the trie and nothing of a model: it says which continuations it wants scored
(`queries`), is given their log-probabilities (`feed`), and after the last level gives the items (`found`). Whoever runs
the model batches the queries of many prompts. numpy only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from onerec.catalog import ItemIndex
from onerec.sid import SidSpec


@dataclasses.dataclass(frozen=True)
class Query:
    """What to score: after the prompt and ``prefix`` (token ids), the log-probabilities of ``candidates``.

    ``candidates`` int64 [n] are token ids, or None where any token may follow: then the best ``top`` are wanted.
    Log-probabilities are those of the full softmax at temperature 1, so that scores of different prefixes compare.
    """

    prefix: tuple[int, ...]
    candidates: np.ndarray | None
    top: int


@dataclasses.dataclass(frozen=True)
class Found:
    """One item: its token ids, one a layer, the log-probability of each, and their sum."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float


@dataclasses.dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float
    node: int


class ItemSearch:
    """Beams of one prompt that ends in the SID's begin token.

    Args:
        spec: the checkpoint's SIDs, with ids.
        index: the catalogue; None searches the whole vocabulary (unconstrained).
        width: items wanted; beam search gives fewer where the catalogue has fewer.
        rng: None for beam search; a generator draws ``width`` items with replacement instead, from the distribution
            over what may follow at ``temperature``.
    """

    def __init__(
        self,
        spec: SidSpec,
        index: ItemIndex | None,
        width: int,
        rng: np.random.Generator | None = None,
        temperature: float = 1.0,
    ) -> None:
        if width < 1:
            raise ValueError(f"a search of width {width} finds nothing")
        if index is not None and not index.spec.same_codebooks(spec):
            raise ValueError(
                f"the catalogue has codebooks {index.spec.codebook_sizes}, the model {spec.codebook_sizes}"
            )
        self.spec, self.index, self.width = spec, index, width
        self._rng, self._temperature = rng, temperature
        self._level = 0
        self._beams = [_Beam((), (), 0.0, 0)] * (1 if rng is None else width)

    @property
    def done(self) -> bool:
        """Whether the last level has been fed."""
        return self._level == self.spec.n_layers

    def queries(self) -> list[Query]:
        """What to score next, one query for every distinct prefix; empty when `done`."""
        if self.done:
            return []
        distinct = {beam.tokens: beam for beam in self._beams}
        self._asked = [(tokens, *self._children(beam)) for tokens, beam in distinct.items()]
        return [Query(tokens, children, self.width) for tokens, children, _ in self._asked]

    def feed(self, answers: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take, for every query in order, (token ids, log-probabilities); ids that may not follow are left out."""
        if len(answers) != len(self._asked):
            raise ValueError(f"{len(answers)} answers to {len(self._asked)} queries")
        options = {
            tokens: _allowed(children, nodes, *answer)
            for (tokens, children, nodes), answer in zip(self._asked, answers, strict=True)
        }
        self._beams = self._best(options) if self._rng is None else self._drawn(options)
        self._level += 1

    def found(self) -> list[Found]:
        """The items, best first (in the order of the draws where they were sampled)."""
        return [Found(beam.tokens, beam.logprobs, beam.score) for beam in self._beams]

    def _children(self, beam: _Beam) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(token ids, trie nodes) of what may follow a beam; (None, None) where anything may."""
        if self.index is None:
            return None, None
        level = self.index.levels[self._level]
        first, last = int(level.start[beam.node]), int(level.start[beam.node + 1])
        return level.code[first:last] + self.spec.layer_ranges[self._level][0], np.arange(first, last)

    def _best(self, options: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[_Beam]:
        beams = self._beams
        sizes = [len(options[beam.tokens][0]) for beam in beams]
        ids, logprobs, nodes = (np.concatenate([options[beam.tokens][part] for beam in beams]) for part in range(3))
        owner = np.repeat(np.arange(len(beams)), sizes)
        scores = np.array([beam.score for beam in beams])[owner] + logprobs
        # Ties go to the earlier beam, then to the smaller token.
        order = np.argsort(-scores, kind="stable")[: self.width]
        return [self._extended(beams[owner[i]], int(ids[i]), float(logprobs[i]), int(nodes[i])) for i in order]

    def _drawn(self, options: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[_Beam]:
        assert self._rng is not None
        drawn = []
        for beam in self._beams:
            ids, logprobs, nodes = options[beam.tokens]
            scaled = logprobs / self._temperature
            chances = np.exp(scaled - scaled.max())
            i = int(self._rng.choice(len(ids), p=chances / chances.sum()))
            drawn.append(self._extended(beam, int(ids[i]), float(logprobs[i]), int(nodes[i])))
        return drawn

    @staticmethod
    def _extended(beam: _Beam, token: int, logprob: float, node: int) -> _Beam:
        return _Beam((*beam.tokens, token), (*beam.logprobs, logprob), beam.score + logprob, node)


def _allowed(
    children: np.ndarray | None, nodes: np.ndarray | None, ids: np.ndarray, logprobs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(token ids, log-probabilities, nodes) of an answer, in the order of ids, without what may not follow."""
    if ids is children and nodes is not None:
        return ids, logprobs, nodes
    order = np.argsort(ids, kind="stable")
    ids, logprobs = ids[order], logprobs[order]
    if children is None or nodes is None:
        return ids, logprobs, np.zeros(len(ids), dtype=np.int64)
    place = np.minimum(np.searchsorted(children, ids), len(children) - 1)
    keep = children[place] == ids
    return ids[keep], logprobs[keep], nodes[place[keep]]
