"""Item decoding: beam search over the SIDs that exist, prefilling every prompt once.

The beams of a prompt are decoded as extra positions of one sequence: each attends to the prompt and to its own
ancestors through a mask, so the prompt's keys and values are computed once and never repeated a beam (the tree
attention of speculative decoding: SpecInfer, arXiv 2305.09781, section 4). A hypothesis' score is the sum of the
log-probabilities of its itemic tokens under the full softmax of the vocabulary; with as many beams as there are
SIDs the search is exhaustive and the ranking exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from onerec.catalog import ItemIndex, TrieLevel
from onerec.sid import SidSpec

if TYPE_CHECKING:
    import torch

# Logits of at most this many elements are held at a time while the softmax is normalised.
_LOGIT_ELEMENTS = 1 << 25


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """One decoded SID: its codes and the log-probability of its itemic tokens given the prompt and begin."""

    codes: tuple[int, ...]
    logprob: float


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
) -> list[list[Hypothesis]]:
    """The best ``num_beams`` SIDs of the catalogue for every prompt, best first.

    Args:
        model: a Hugging Face causal language model (``model.model`` gives hidden states), in evaluation mode.
        prompts: token ids of each prompt, up to but without the SID's begin token.
        index: the catalogue. spec: the checkpoint's `SidSpec`, with ids.
        num_beams: beams kept a level. token_budget: prompt tokens of a padded batch.
        exclude: for every prompt the SIDs that must not come out (seen items), or None.

    Returns a list a prompt of at most ``num_beams`` `Hypothesis`; fewer where the catalogue has fewer.
    """
    if index.spec.codebook_sizes != spec.codebook_sizes:
        raise ValueError(
            f"the catalogue has codebooks {index.spec.codebook_sizes}, the model {spec.codebook_sizes}"
        )
    results: list[list[Hypothesis]] = [[] for _ in prompts]
    beams_cost = num_beams * (spec.n_layers - 1)
    lengths = [len(prompt) + 1 + beams_cost for prompt in prompts]
    for batch in batches_by_length(lengths, token_budget):
        rows = [[*prompts[i], spec.begin_id] for i in batch]
        banned = None if exclude is None else [exclude[i] for i in batch]
        for i, hypotheses in zip(
            batch, _decode_batch(model, rows, index, spec, num_beams, banned), strict=True
        ):
            results[i] = hypotheses
    return results


def _decode_batch(
    model: Any,
    rows: list[list[int]],
    index: ItemIndex,
    spec: SidSpec,
    width: int,
    banned: Sequence[Collection[tuple[int, ...]]] | None,
) -> list[list[Hypothesis]]:
    import torch

    with torch.inference_mode():
        tree = _Tree(model, rows, spec)
        n = len(rows)
        scores = torch.zeros(n, 1)  # log-probability of every beam
        nodes = torch.zeros(n, 1, dtype=torch.int64)  # trie node of every beam
        logprobs = tree.prefill()
        for depth, level in enumerate(index.levels):
            last = depth == spec.n_layers - 1
            drop = _excluded(index, banned) if last and banned is not None else None
            scores, nodes, parents, codes = _expand(scores, nodes, logprobs, level, width, drop)
            if not last:
                logprobs = tree.step(depth, parents, codes)
    result = []
    for row_scores, row_nodes in zip(scores.tolist(), nodes.tolist(), strict=True):
        kept = [(s, node) for s, node in zip(row_scores, row_nodes, strict=True) if s > -np.inf]
        result.append([Hypothesis(tuple(map(int, index.sids[node])), s) for s, node in kept])
    return result


def _excluded(index: ItemIndex, banned: Sequence[Collection[tuple[int, ...]]]) -> torch.Tensor:
    """Bool [B, n_sids]: which leaves must not come out for which prompt."""
    import torch

    drop = torch.zeros(len(banned), len(index.sids), dtype=torch.bool)
    for row, sids in enumerate(banned):
        leaves = [leaf for sid in sids if (leaf := index.row_of(sid)) is not None]
        drop[row, leaves] = True
    return drop


def _expand(
    scores: torch.Tensor,
    nodes: torch.Tensor,
    logprobs: torch.Tensor,
    level: TrieLevel,
    width: int,
    drop: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Extend every beam by every child in the trie and keep the best ``width`` a prompt.

    scores, nodes: [B, W]; logprobs: [B, W, codebook]; drop: children banned, bool [B, n_children] or None.
    Returns scores, child nodes, parent beams and codes, each [B, W'], best first; ties go to the smaller SID. A slot
    that no child fills has score -inf.
    """
    import torch

    n, beams = nodes.shape
    start, code = torch.from_numpy(level.start), torch.from_numpy(level.code)
    first, fanout = start[nodes], (start[nodes + 1] - start[nodes])
    fanout = torch.where(scores > -torch.inf, fanout, 0)
    flat = fanout.flatten()
    owner = torch.repeat_interleave(torch.arange(n * beams), flat)  # the beam of every candidate
    offset = torch.arange(len(owner)) - torch.repeat_interleave(flat.cumsum(0) - flat, flat)
    child = first.flatten()[owner] + offset
    prompt = owner // beams
    value = scores.flatten()[owner] + logprobs.reshape(n * beams, -1)[owner, code[child]]
    if drop is not None:
        value = value.masked_fill(drop[prompt, child], -torch.inf)
    # Sort by prompt, then score, then SID: stable sorts from the least significant key up.
    order = torch.argsort(child, stable=True)
    order = order[torch.argsort(value[order], descending=True, stable=True)]
    order = order[torch.argsort(prompt[order], stable=True)]
    counts = torch.bincount(prompt, minlength=n)
    keep = min(width, int(counts.max()) if len(owner) else 0)
    begin = counts.cumsum(0) - counts
    slot = torch.arange(keep)
    filled = slot < counts[:, None]
    pick = order[torch.where(filled, begin[:, None] + slot, 0)]
    new_scores = torch.where(filled, value[pick], -torch.inf)
    return new_scores, child[pick], owner[pick] % beams, code[child[pick]]


class _Tree:
    """The model's side of the search: the prompts' cache and, behind it, the beams of every level."""

    def __init__(self, model: Any, rows: list[list[int]], spec: SidSpec) -> None:
        import torch

        self.model, self.spec = model, spec
        self.device = model.device
        self.lengths = torch.tensor([len(row) for row in rows])
        self.width = int(self.lengths.max())
        # Right padding: under the causal mask a prompt never sees the padding behind it, so the prefill needs no mask.
        self.ids = torch.zeros(len(rows), self.width, dtype=torch.int64)
        for i, row in enumerate(rows):
            self.ids[i, : len(row)] = torch.tensor(row)
        self.cache: Any = None
        self.visible: torch.Tensor  # bool [B, beams, keys so far]: what every beam may attend to

    def prefill(self) -> torch.Tensor:
        """Run the prompts; log-probabilities of the first layer's codes, [B, 1, codebook]."""
        import torch
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)
        hidden = self._hidden(input_ids=self.ids.to(self.device))
        last = hidden[torch.arange(len(self.ids)), self.lengths.to(self.device) - 1]
        keys = torch.arange(self.width)
        self.visible = (keys < self.lengths[:, None])[:, None, :]
        return self._logprobs(last[:, None], 0)

    def step(self, depth: int, parents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Feed the tokens of layer ``depth`` (parents, codes: [B, W]); log-probabilities of the next, [B, W, codebook]."""
        import torch

        n, width = codes.shape
        inherited = torch.gather(self.visible, 1, parents[:, :, None].expand(-1, -1, self.visible.shape[2]))
        itself = torch.eye(width, dtype=torch.bool).expand(n, -1, -1)
        self.visible = torch.cat([inherited, itself], dim=2)
        dtype = self.model.dtype
        mask = torch.zeros(n, 1, *self.visible.shape[1:], dtype=dtype)
        mask.masked_fill_(~self.visible[:, None], torch.finfo(dtype).min)
        first, _ = self.spec.layer_ranges[depth]
        hidden = self._hidden(
            input_ids=(codes + first).to(self.device),
            attention_mask=mask.to(self.device),
            position_ids=(self.lengths + depth)[:, None].expand(-1, width).to(self.device),
        )
        return self._logprobs(hidden, depth + 1)

    def _hidden(self, **inputs: Any) -> torch.Tensor:
        return self.model.model(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state

    def _logprobs(self, hidden: torch.Tensor, layer: int) -> torch.Tensor:
        """Log-probabilities of a layer's codes under the softmax over the whole vocabulary; [B, W, codebook] on the CPU."""
        import torch

        head = self.model.get_output_embeddings().weight
        first, last = self.spec.layer_ranges[layer]
        flat = hidden.reshape(-1, hidden.shape[-1])
        parts = []
        for chunk in flat.split(max(1, _LOGIT_ELEMENTS // head.shape[0])):
            logits = (chunk @ head.T).float()
            parts.append((logits[:, first : last + 1] - torch.logsumexp(logits, dim=-1, keepdim=True)).cpu())
        return torch.cat(parts).reshape(*hidden.shape[:-1], -1)
