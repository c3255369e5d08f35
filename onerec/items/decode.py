"""Item decoding: beam search over the SIDs that exist, prefilling every prompt once.

A hypothesis' score is the sum of the log-probabilities of its itemic tokens. By default they are those of the softmax over
the whole vocabulary, so that a score is what the model itself would say; with as many beams as there are SIDs the
search is exhaustive and the ranking exact. ``normalize="level"`` divides by the level's own codes only, as if no other
token could follow: the same work without the product with the text vocabulary. `onerec.items.beam_model` runs the model.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onerec.catalog import ItemIndex
from onerec.items.beam_model import BeamModel
from onerec.sid import SidSpec

if TYPE_CHECKING:
    import torch

NORMALIZE = ("vocabulary", "level")


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One decoded SID: its codes, the log-probability of its itemic tokens given the prompt and begin, its items.

    ``pids``: the items that the SID names, most popular first.
    """

    codes: tuple[int, ...]
    logprob: float
    pids: tuple[int, ...] = ()


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


def decode_items(
    model: Any,
    prompts: Sequence[Sequence[int]],
    index: ItemIndex,
    spec: SidSpec,
    num_beams: int = 32,
    token_budget: int = 16384,
    exclude: Sequence[Collection[tuple[int, ...]]] | None = None,
    normalize: str = "vocabulary",
) -> list[list[Hypothesis]]:
    """The best ``num_beams`` SIDs of the catalogue for every prompt, best first.

    Args:
        model: a Hugging Face causal language model (``model.model`` gives hidden states), in evaluation mode.
        prompts: token ids of each prompt, up to but without the SID's begin token.
        index: the catalogue. spec: the checkpoint's `SidSpec`, with ids.
        num_beams: beams kept a level. token_budget: tokens of a padded batch, its beams counted.
        exclude: for every prompt the SIDs that must not come out (seen items), or None. No beam is spent on them.
        normalize: ``vocabulary``, log-probabilities of the whole softmax; ``level``, of the softmax over the level's codes.

    Returns a list a prompt of at most ``num_beams`` `Hypothesis`; fewer where the catalogue has fewer. Equal scores are
    ordered by SID. Raises ValueError where the catalogue's codebooks are not the model's.
    """
    if index.spec.codebook_sizes != spec.codebook_sizes:
        raise ValueError(f"the catalogue has codebooks {index.spec.codebook_sizes}, the model {spec.codebook_sizes}")
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize is {normalize!r}, not one of {NORMALIZE}")
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    beams_cost = num_beams * (spec.n_layers - 1)
    lengths = [len(prompt) + 1 + beams_cost for prompt in prompts]
    for batch in batches_by_length(lengths, token_budget):
        rows = [[*prompts[i], spec.begin_id] for i in batch]
        banned = None if exclude is None else [exclude[i] for i in batch]
        search = _Search(BeamModel(model, spec), index, num_beams, normalize, banned)
        for i, hypotheses in zip(batch, search.run(rows), strict=True):
            results[i] = hypotheses
    return results


class _Search:
    """One batch: which beams go on. Tensors are on the model's device; B prompts, W beams."""

    def __init__(
        self,
        model: BeamModel,
        index: ItemIndex,
        width: int,
        normalize: str,
        banned: Sequence[Collection[tuple[int, ...]]] | None,
    ) -> None:
        self.model, self.index, self.width, self.normalize = model, index, width, normalize
        self.levels = _trie(index, model.device)
        self.dead = dead_nodes(index, banned) if banned is not None and any(map(len, banned)) else None

    def run(self, rows: Sequence[Sequence[int]]) -> list[list[Hypothesis]]:
        """The hypotheses of every prompt of ``rows`` (token ids, the begin token last)."""
        import torch

        with torch.inference_mode():
            hidden = self.model.prefill(rows)
            scores = torch.zeros(len(rows), 1, device=self.model.device)
            nodes = torch.zeros(len(rows), 1, dtype=torch.int64, device=self.model.device)
            for depth in range(self.index.spec.n_layers):
                scores, nodes, parents, codes = self._expand(depth, scores, nodes, hidden)
                if depth < self.index.spec.n_layers - 1:
                    hidden = self.model.step(depth, parents, codes)
        return [
            [
                Hypothesis(tuple(sid), score, tuple(self.index.pids_at(row)))
                for score, row, sid in zip(row_scores, row_nodes, self.index.sids[row_nodes].tolist(), strict=True)
                if score > -np.inf
            ]
            for row_scores, row_nodes in zip(scores.tolist(), nodes.tolist(), strict=True)
        ]  # fmt: skip

    def _expand(
        self, depth: int, scores: torch.Tensor, nodes: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Extend every beam by every child in the trie and keep the best ``width`` a prompt.

        scores, nodes: [B, W]; hidden: [B, W, hidden]. Returns scores, child nodes, parent beams and codes, each [B, W'], best
        first; ties go to the smaller SID. A slot that no child fills has score -inf.
        """
        import torch

        start, code = self.levels[depth]
        n, beams = nodes.shape
        device = nodes.device
        fanout = torch.where(scores > -torch.inf, start[nodes + 1] - start[nodes], 0).flatten()
        end = fanout.cumsum(0)
        total = int(end[-1])
        owner = torch.repeat_interleave(
            torch.arange(n * beams, device=device), fanout, output_size=total
        )  # every candidate's beam
        child = torch.arange(total, device=device) + (start[nodes].flatten() - (end - fanout))[owner]
        prompt = owner // beams
        if self.dead is not None:
            alive = ~torch.isin(prompt * len(code) + child, torch.from_numpy(self.dead[depth]).to(device))
            owner, child, prompt = owner[alive], child[alive], prompt[alive]
        value = self._logprobs(depth, hidden.flatten(0, 1), owner, code[child]) + scores.flatten()[owner]
        counts = torch.bincount(prompt, minlength=n)
        keep = min(self.width, int(counts.max())) if len(owner) else 0
        if not keep:  # everything is excluded
            empty = torch.zeros(n, 1, dtype=torch.int64, device=device)
            return torch.full((n, 1), -torch.inf, device=device), empty, empty, empty
        value, child, owner, prompt = _best(value, child, owner, prompt, counts, keep)
        counts = torch.bincount(prompt, minlength=n)
        # Sort by prompt, then score, then SID: stable sorts from the least significant key up.
        order = torch.argsort(child, stable=True)
        order = order[torch.argsort(value[order], descending=True, stable=True)]
        order = order[torch.argsort(prompt[order], stable=True)]
        begin = counts.cumsum(0) - counts
        slot = torch.arange(keep, device=device)
        filled = slot < counts[:, None]
        pick = order[torch.where(filled, begin[:, None] + slot, 0)]
        new_scores = torch.where(filled, value[pick], -torch.inf)
        return new_scores, child[pick], owner[pick] % beams, code[child[pick]]

    def _logprobs(self, depth: int, hidden: torch.Tensor, owner: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """Log-probability, float32 [C], of every candidate's ``code`` behind its ``owner``, a row of hidden [N, hidden]."""
        import torch

        logits = self.model.logits(hidden, depth, owner, code)
        if not len(logits):
            return logits
        # Rows without a candidate (empty slots) are not normalised; the largest logit of the others is known.
        rows, which = torch.unique_consecutive(owner, return_inverse=True)
        near = torch.full((len(rows),), -torch.inf, device=logits.device)
        near.scatter_reduce_(0, which, logits, "amax")
        layer = depth if self.normalize == "level" else None
        return logits - self.model.log_normalizer(hidden[rows], layer, near)[which]


def _best(
    value: torch.Tensor,
    child: torch.Tensor,
    owner: torch.Tensor,
    prompt: torch.Tensor,
    counts: torch.Tensor,
    keep: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The candidates that reach the ``keep``-th best value of their prompt, in their order; ties may make them more."""
    import torch

    n, most = len(counts), int(counts.max())
    if most <= 2 * keep:
        return value, child, owner, prompt
    begin = counts.cumsum(0) - counts
    table = torch.full((n, most), -torch.inf, device=value.device)
    table[prompt, torch.arange(len(value), device=value.device) - begin[prompt]] = value
    lowest = table.topk(keep, sorted=False).values.amin(-1)
    good = value >= lowest[prompt]
    return value[good], child[good], owner[good], prompt[good]


_TRIES: weakref.WeakKeyDictionary[ItemIndex, dict[str, Any]] = weakref.WeakKeyDictionary()


def _trie(index: ItemIndex, device: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(start, code) of every level as tensors on ``device``, made once a catalogue and device."""
    import torch

    known = _TRIES.setdefault(index, {})
    if str(device) not in known:
        known[str(device)] = [
            (torch.from_numpy(level.start).to(device), torch.from_numpy(level.code).to(device))
            for level in index.levels
        ]
    return known[str(device)]


def dead_nodes(index: ItemIndex, banned: Sequence[Collection[tuple[int, ...]]]) -> list[np.ndarray]:
    """For every level the nodes without a SID left, as sorted keys prompt · n_nodes + node."""
    rows = [sorted({leaf for sid in sids if (leaf := index.row_of(sid)) is not None}) for sids in banned]
    prompts = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    leaves = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    result = []
    for first in index.first_leaf:
        size = np.diff(np.append(first, len(index.sids)))
        keys = prompts * len(first) + np.searchsorted(first, leaves, side="right") - 1
        found, count = np.unique(keys, return_counts=True)
        dead = found[count == size[found % len(first)]]
        result.append(dead)
    return result
