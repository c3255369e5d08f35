"""The search for items: beams, or draws, over the SIDs that exist (or over any tokens), level by level, on the model's
device.

A score is the sum of the log-probabilities of an item's tokens. By default they are those of the softmax over the whole
vocabulary, so that a score is what the model itself would say; with as many beams as there are SIDs the search is
exhaustive and the ranking exact. ``normalize="level"`` divides by the level's own codes only, as if no other token
could follow: the same work without the product with the text vocabulary. Equal scores are ordered by SID (by tokens,
where any may follow).
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch

from onerec.catalog import ItemIndex
from onerec.items.item import NORMALIZE, Draws, Item, batches_by_length
from onerec.items.model import ItemModel


def find_items(
    model: ItemModel,
    prompts: Sequence[Sequence[int]],
    index: ItemIndex | None,
    width: int = 32,
    token_budget: int = 16384,
    exclude: Sequence[Collection[tuple[int, ...]]] | None = None,
    normalize: str = "vocabulary",
    draws: Draws | None = None,
    also: Sequence[np.ndarray] | None = None,
) -> list[list[Item]]:
    """The best ``width`` items for every prompt, best first, or ``width`` draws.

    Args:
        prompts: token ids of each prompt, up to and with the SID's begin token.
        index: the catalogue; None lets any token follow (a draw is then made among a beam's ``width`` likeliest).
        token_budget: tokens of a batch, its beams counted.
        exclude: for every prompt the SIDs that must not come out (seen items), or None. No beam is spent on them.
        normalize: ``vocabulary``, log-probabilities of the whole softmax; ``level``, of the softmax over the level's
        codes.
        also: for every prompt SIDs to be scored beside those that the beams find (rows of `ItemIndex.sids`, as a prior
            proposes them). The items are then both, best first, and may be more than ``width``.

    Beams give fewer items where the catalogue has fewer. Raises ValueError where the catalogue's codebooks are not the
    model's, and where a prompt leaves no room for its item.
    """
    if width < 1:
        raise ValueError(f"a search of width {width} finds nothing")
    if index is not None and not index.spec.same_codebooks(model.spec):
        raise ValueError(
            f"the catalogue has codebooks {index.spec.codebook_sizes}, the model {model.spec.codebook_sizes}"
        )
    longest = max(map(len, prompts), default=0) + model.spec.n_layers
    if longest > model.context:
        raise ValueError(f"the longest prompt takes {longest} tokens with its item, and the context is {model.context}")
    if draws is not None and (exclude is not None or also is not None):
        raise ValueError("draws leave no items out and score no others")
    if index is None and also is not None:
        raise ValueError("without a catalogue there are no SIDs to score beside the beams'")
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize is {normalize!r}, not one of {NORMALIZE}")
    results: list[list[Item]] = [[] for _ in prompts]
    lengths = [len(prompt) + width * (model.spec.n_layers - 1) for prompt in prompts]
    for batch in batches_by_length(lengths, token_budget):
        banned = None if exclude is None else [exclude[i] for i in batch]
        drawn = None if draws is None else Draws([draws.seeds[i] for i in batch], draws.temperature)
        search = _Search(model, index, width, normalize, banned, drawn)
        found = search.run([prompts[i] for i in batch], None if also is None else [also[i] for i in batch])
        for i, items in zip(batch, found, strict=True):
            results[i] = items
    return results


@dataclasses.dataclass
class _Beams:
    """B prompts, W beams each, best first: scores float32 (-inf: an empty slot), nodes of the trie, and what led there
    [B, W, level].
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    tokens: torch.Tensor
    logprobs: torch.Tensor


@dataclasses.dataclass
class _Candidates:
    """C continuations, by prompt, then by beam, then by token: beam (of all B x W), child node, token, log-probability,
    score.
    """

    owner: torch.Tensor
    child: torch.Tensor
    token: torch.Tensor
    logprob: torch.Tensor
    score: torch.Tensor

    def at(self, which: torch.Tensor) -> _Candidates:
        return _Candidates(*(getattr(self, field.name)[which] for field in dataclasses.fields(self)))


class _Search:
    """One batch: which beams go on."""

    def __init__(
        self,
        model: ItemModel,
        index: ItemIndex | None,
        width: int,
        normalize: str,
        banned: Sequence[Collection[tuple[int, ...]]] | None,
        draws: Draws | None,
    ) -> None:
        self.model, self.index, self.width, self.normalize, self.draws = model, index, width, normalize, draws
        self.levels = None if index is None else _trie(index, model.device)
        self.dead = (
            dead_nodes(index, banned) if index is not None and banned is not None and any(map(len, banned)) else None
        )

    @torch.inference_mode()
    def run(self, rows: Sequence[Sequence[int]], also: Sequence[np.ndarray] | None = None) -> list[list[Item]]:
        """The items of every prompt of ``rows``, and with them those of ``also``."""
        hidden = self.model.prefill(rows)
        searched = self._items(self._beams(hidden))
        if also is None:
            return searched
        self.model.forget_beams()
        others = self._items(self._beams(hidden, wanted_nodes(self.index, also)))
        both = ({item.codes: item for item in (*more, *found)} for more, found in zip(others, searched, strict=True))
        return [sorted(items.values(), key=lambda item: (-item.score, item.codes)) for items in both]

    def _beams(self, hidden: torch.Tensor, wanted: list[np.ndarray] | None = None) -> _Beams:
        """The beams behind the prompts' last hidden states [B, 1, hidden]: the best, the drawn, or all that is
        ``wanted``.
        """
        n, n_layers, device = len(hidden), self.model.spec.n_layers, self.model.device
        start = torch.zeros(n, 1, device=device)
        beams = _Beams(start, start.long(), start.long()[..., None][..., :0], start[..., None][..., :0])
        if self.draws:
            # Draw d of prompt b stands at beam slot[b, d]; its number for level l is chance[b, d, l].
            slot = torch.zeros(n, self.width, dtype=torch.int64, device=device)
            drawn = [np.random.default_rng(seed).random((self.width, n_layers)) for seed in self.draws.seeds]
            chance = torch.from_numpy(np.stack(drawn)).to(device)
        for depth in range(n_layers):
            options = self._options(depth, beams, hidden, None if wanted is None else wanted[depth])
            if self.draws:
                picked = self._drawn(options, beams, slot, chance[:, :, depth])
                kept, where = picked.unique(return_inverse=True)
            elif wanted is not None:
                kept = torch.arange(len(options.owner), device=device)
            else:
                kept = self._best(options, beams)
            beams, parents, first = _extended(beams, options.at(kept))
            if self.index is None:
                beams.nodes = beams.nodes.argsort(-1).argsort(-1)
            if self.draws:
                slot = where - first[:, None]
            if depth < n_layers - 1:
                # How many SIDs are wanted is another number for every batch.
                hidden = self.model.step(depth, parents, beams.tokens[..., -1], again=wanted is None)
        if self.draws:
            beams = _Beams(*(_taken(getattr(beams, field.name), slot) for field in dataclasses.fields(beams)))
        return beams

    def _items(self, beams: _Beams) -> list[list[Item]]:
        columns = (part.tolist() for part in (beams.tokens, beams.logprobs, beams.scores, beams.nodes))
        return [
            [
                Item(*self._named(node, score), tuple(tokens), tuple(logprobs))
                for tokens, logprobs, score, node in zip(*rows, strict=True)
                if score > -np.inf
            ]
            for rows in zip(*columns, strict=True)
        ]

    def _named(self, node: int, score: float) -> tuple[tuple[int, ...], float, tuple[int, ...]]:
        if self.index is None:
            return (), score, ()
        return tuple(self.index.sids[node].tolist()), score, tuple(self.index.pids_at(node))

    def _options(self, depth: int, beams: _Beams, hidden: torch.Tensor, wanted: np.ndarray | None) -> _Candidates:
        """Every continuation of every beam: its children in the trie (those ``wanted``), or its likeliest tokens
        without one.
        """
        hidden, scores = hidden.flatten(0, 1), beams.scores.flatten()
        if self.levels is None:
            alive = torch.nonzero(scores > -torch.inf)[:, 0]
            value, token = self.model.best_tokens(hidden[alive], self.width)
            value = value - self.model.log_normalizer(hidden[alive], None, value.amax(-1))[:, None]
            owner = alive.repeat_interleave(token.shape[1])
            # The node of a prefix is its place among its prompt's prefixes in the order of their tokens.
            child = beams.nodes.flatten()[owner] * len(self.model.head) + token.flatten()
            return _Candidates(owner, child, token.flatten(), value.flatten(), value.flatten() + scores[owner])
        start, code = self.levels[depth]
        nodes = beams.nodes.flatten()
        fanout = torch.where(scores > -torch.inf, start[nodes + 1] - start[nodes], 0)
        end = fanout.cumsum(0)
        total = int(end[-1])
        owner = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), fanout, output_size=total)
        child = torch.arange(total, device=nodes.device) + (start[nodes] - (end - fanout))[owner]
        key = owner // beams.nodes.shape[1] * len(code) + child
        for keys, stay in ((self.dead[depth] if self.dead else None, False), (wanted, True)):
            if keys is not None:
                alive = torch.isin(key, torch.from_numpy(keys).to(key.device)) == stay
                owner, child, key = owner[alive], child[alive], key[alive]
        first, last = self.model.spec.layer_ranges[depth]
        chosen = code[child].long()
        logprob = self._logprobs(depth, first, last, hidden, owner, chosen)
        return _Candidates(owner, child, chosen + first, logprob, logprob + scores[owner])

    def _logprobs(
        self, depth: int, first: int, last: int, hidden: torch.Tensor, owner: torch.Tensor, code: torch.Tensor
    ) -> torch.Tensor:
        """Log-probability, float32 [C], of every candidate's ``code`` behind its ``owner``, a row of hidden [N,
        hidden].
        """
        logits = self.model.logits(hidden, first, last, owner, code)
        if not len(logits):
            return logits
        # Rows without a candidate (empty slots) are not normalised; the largest logit of the others is known.
        rows, which = torch.unique_consecutive(owner, return_inverse=True)
        near = torch.full((len(rows),), -torch.inf, device=logits.device)
        near.scatter_reduce_(0, which, logits, "amax")
        layer = depth if self.normalize == "level" else None
        return logits - self.model.log_normalizer(hidden[rows], layer, near)[which]

    def _best(self, options: _Candidates, beams: _Beams) -> torch.Tensor:
        """The ``width`` best candidates of every prompt, by prompt, then score, then SID."""
        n, beams_each = beams.nodes.shape
        prompt, value = options.owner // beams_each, options.score
        counts = torch.bincount(prompt, minlength=n)
        order = torch.arange(len(value), device=value.device)
        most = int(counts.max())
        if most > 2 * self.width:
            # First only what reaches the width-th best score of its prompt; ties may make it more.
            begin = counts.cumsum(0) - counts
            table = torch.full((n, most), -torch.inf, device=value.device)
            table[prompt, order - begin[prompt]] = value
            order = order[value >= table.topk(self.width, sorted=False).values.amin(-1)[prompt]]
        # Stable sorts from the least significant key up.
        order = order[torch.argsort(options.child[order], stable=True)]
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(prompt[order], stable=True)]
        counts = torch.bincount(prompt[order], minlength=n)
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[prompt[order]]
        return order[rank < self.width]

    def _drawn(self, options: _Candidates, beams: _Beams, slot: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
        """The candidate [B, W] that each draw takes, by inverse transform sampling among its beam's."""
        n, beams_each = beams.nodes.shape
        top = torch.full((n * beams_each,), -torch.inf, dtype=torch.float64, device=slot.device)
        scaled = options.logprob.double() / self.draws.temperature
        top.scatter_reduce_(0, options.owner, scaled, "amax")
        counts = torch.bincount(options.owner, minlength=n * beams_each)
        last = counts.cumsum(0)
        mass = torch.cat([scaled.new_zeros(1), (scaled - top[options.owner]).exp().cumsum(0)])
        beam = slot + torch.arange(n, device=slot.device)[:, None] * beams_each
        low, high = mass[last[beam] - counts[beam]], mass[last[beam]]
        at = torch.searchsorted(mass, low + chance * (high - low), right=True) - 1
        return torch.minimum(torch.maximum(at, last[beam] - counts[beam]), last[beam] - 1)


def _extended(beams: _Beams, kept: _Candidates) -> tuple[_Beams, torch.Tensor, torch.Tensor]:
    """The beams that the candidates ``kept`` (by prompt) lead to, their parents' places [B, W'], and each prompt's
    first of ``kept``.
    """
    n, beams_each = beams.nodes.shape
    prompt = kept.owner // beams_each
    counts = torch.bincount(prompt, minlength=n)
    begin = counts.cumsum(0) - counts
    slot = torch.arange(max(1, int(counts.max())), device=counts.device)
    filled = slot < counts[:, None]
    pick = torch.where(filled, begin[:, None] + slot, 0)
    if not len(kept.owner):  # everything is excluded
        kept = _Candidates(*(getattr(kept, field.name).new_zeros(1) for field in dataclasses.fields(kept)))
    parents = kept.owner[pick] % beams_each
    new = _Beams(
        torch.where(filled, kept.score[pick], -torch.inf),
        kept.child[pick],
        torch.cat([_taken(beams.tokens, parents), kept.token[pick][..., None]], -1),
        torch.cat([_taken(beams.logprobs, parents), kept.logprob[pick][..., None]], -1),
    )
    return new, parents, begin


def _taken(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``values`` [B, W, …] of the beams ``index`` [B, W']."""
    return values[torch.arange(len(index), device=index.device)[:, None], index]


_TRIES: weakref.WeakKeyDictionary[ItemIndex, dict[str, Any]] = weakref.WeakKeyDictionary()


def _trie(index: ItemIndex, device: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(start, code) of every level as tensors on ``device``, made once a catalogue and device."""
    known = _TRIES.setdefault(index, {})
    if str(device) not in known:
        known[str(device)] = [
            (torch.from_numpy(level.start).to(device), torch.from_numpy(level.code).to(device))
            for level in index.levels
        ]
    return known[str(device)]


def wanted_nodes(index: ItemIndex, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For every level the nodes on the way to each prompt's SIDs (``rows`` of `ItemIndex.sids`), as sorted keys prompt
    · n_nodes + node.
    """
    prompts = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    leaves = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return [
        np.unique(prompts * len(first) + np.searchsorted(first, leaves, side="right") - 1) for first in index.first_leaf
    ]


def dead_nodes(index: ItemIndex, banned: Sequence[Collection[tuple[int, ...]]]) -> list[np.ndarray]:
    """For every level the nodes without a SID left, as sorted keys prompt · n_nodes + node."""
    sids = np.array([sid for some in banned for sid in some], dtype=np.int64).reshape(-1, index.spec.n_layers)
    rows, prompts = index.rows_of(sids), np.repeat(np.arange(len(banned)), list(map(len, banned)))
    prompts, leaves = np.unique(np.stack([prompts, rows])[:, rows >= 0], axis=1)
    result = []
    for first in index.first_leaf:
        size = np.diff(np.append(first, len(index.sids)))
        keys = prompts * len(first) + np.searchsorted(first, leaves, side="right") - 1
        found, count = np.unique(keys, return_counts=True)
        dead = found[count == size[found % len(first)]]
        result.append(dead)
    return result
