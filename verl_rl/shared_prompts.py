"""Rows that begin alike, computed once: the items of a prompt as one tree of tokens.

A group of GRPO is one prompt with many short answers; as rows of a batch each answer pays for its prompt again. Here
every distinct prefix is one column: a token attends to its ancestors in the tree, its position is its depth, and the
head is applied behind the prompts only. The log-probabilities are those of separate rows, since a token sees the same
tokens at the same positions as in a row of its own.

The idea is that of tree attention (SpecInfer, Miao et al., arXiv 2305.09781) and of Prefix Grouper (arXiv 2506.05433).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view


@dataclasses.dataclass(frozen=True)
class Trees:
    """Rows laid out as trees; ``g`` prompts, ``w`` columns, of which the last ``k`` have logits.

    ``input_ids``, ``position_ids``: int64 [g, w], prompts end in the same column. ``mask``: bool [g, 1, w, w], what a
    column attends to. ``place``: int64 [2, n], group and kept column whose logits predict each of the ``n`` response
    tokens, row after row; ``labels``: int64 [n], these tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    mask: torch.Tensor
    keep: int
    place: torch.Tensor
    labels: torch.Tensor


class _Tree:
    """The answers to one prompt: nodes in order of appearance, each with token, parent (-1: the prompt) and depth."""

    def __init__(self, prompt: np.ndarray) -> None:
        self.prompt = prompt
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.depths: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def add(self, response: Sequence[int]) -> list[int]:
        """Parent nodes of the response's tokens, new nodes made where its path is new."""
        node, parents = -1, []
        for token in response:
            parents.append(node)
            child = self._children.get((node, token))
            if child is None:
                child = self._children[node, token] = len(self.tokens)
                self.tokens.append(token)
                self.parents.append(node)
                self.depths.append(1 + (self.depths[node] if node >= 0 else 0))
            node = child
        return parents

    def ancestors(self) -> np.ndarray:
        """Bool [nodes, nodes]: a node's ancestors and itself.

        A node's row is its parent's with itself added. Parents come first, so one pass over the nodes is enough.
        """
        found = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                found[node] |= found[parent]
        return found


def _trees(
    prompts: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]
) -> tuple[list[_Tree], list[tuple[_Tree, list[int]]]]:
    """(the trees in order of appearance, of every row its tree and its tokens' parents)."""
    trees: dict[bytes, _Tree] = {}
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = prompt.numpy()
        tree = trees.setdefault(ids.tobytes(), _Tree(ids))
        rows.append((tree, tree.add(response.tolist())))
    return list(trees.values()), rows


def build(
    prompts: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], pad_id: int, device: torch.device | str = "cpu"
) -> Trees:
    """Lay rows out as trees on ``device``; prompts (not empty), responses: int64 [length] of every row, on the CPU."""
    groups, rows = _trees(prompts, responses)
    number = {id(tree): g for g, tree in enumerate(groups)}
    head = max(len(tree.prompt) for tree in groups)
    width = head + max(len(tree.tokens) for tree in groups)
    input_ids = np.full((len(groups), width), pad_id, np.int64)
    position_ids = np.zeros((len(groups), width), np.int64)
    # A padding column attends to itself: a softmax over nothing is NaN, and NaN times a weight of 0 is NaN still.
    mask = np.broadcast_to(np.eye(width, dtype=bool), (len(groups), width, width)).copy()
    for g, tree in enumerate(groups):
        # Prompts are padded on the left and answers on the right, so that the head runs on the last columns of all.
        first, last = head - len(tree.prompt), head + len(tree.tokens)
        input_ids[g, first:last] = np.concatenate([tree.prompt, np.array(tree.tokens, np.int64)])
        depths = np.array(tree.depths, np.int64) + len(tree.prompt) - 1
        position_ids[g, first:last] = np.concatenate([np.arange(len(tree.prompt)), depths])
        mask[g, first:head, first:head] = np.tri(len(tree.prompt), dtype=bool)
        mask[g, head:last, first:head] = True
        mask[g, head:last, head:last] = tree.ancestors()
    # Kept columns begin with the prompts' last one, so node n is kept column n + 1 and the prompt (-1) is column 0.
    place = [(number[id(tree)], parent + 1) for tree, parents in rows for parent in parents]
    tensors = (input_ids, position_ids, mask[:, None], np.array(place, np.int64).reshape(-1, 2).T.copy())
    ids, positions, attention, places = (torch.from_numpy(array).to(device) for array in tensors)
    return Trees(ids, positions, attention, width - head + 1, places, torch.cat(list(responses)).to(device))


def gather(logits: torch.Tensor, trees: Trees, entropy: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(log-probabilities, entropies or None) of the response tokens, float32 [n] in nats.

    logits: [g, k, vocabulary] of the kept columns.
    """
    logits = logits.float()
    norm = logits.logsumexp(-1)
    group, column = trees.place
    log_probs = logits[group, column, trees.labels] - norm[group, column]
    if not entropy:
        return log_probs, None
    probabilities = (logits - norm.unsqueeze(-1)).exp()
    return log_probs, (norm - (probabilities * logits).sum(-1))[group, column]


def keep_groups(
    groups: Sequence[str],
    lengths: Sequence[int],
    ranks: int,
    partition: Callable[..., list[list[int]]],
    by_length: bool,
) -> list[int] | None:
    """An order of a batch's rows in which each group stands together, on one rank.

    None where groups differ in size or cannot be dealt out evenly. ``groups``, ``lengths``: a row's group and tokens;
    rows go to ``ranks`` in equal parts. ``partition(lengths, k_partitions, equal_size)`` deals the groups out (verl's
    ``get_seqlen_balanced_partitions``). ``by_length``: shortest first on each rank, so that a micro-batch is padded
    little; otherwise in the batch's order, which mini-batches want.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        rows[group].append(row)
    members = list(rows.values())
    if len({len(member) for member in members}) != 1 or len(members) % ranks:
        return None
    tokens = [sum(lengths[row] for row in member) for member in members]
    parts = partition(tokens, k_partitions=ranks, equal_size=True) if ranks > 1 else [range(len(members))]
    order = []
    for part in parts:
        for group in sorted(part, key=(lambda g: (tokens[g], g)) if by_length else None):
            order += members[group]
    return order


def split_groups(prompts: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], limit: int) -> tuple[int, int]:
    """(groups, fewest equal parts of consecutive whole groups whose trees have at most ``limit`` columns).

    (0, 0) where rows are not in groups of one size, or one group alone is wider (many long thoughts). ``prompts``,
    ``responses``: int64 [length] of every row, on the CPU. Columns are counted as `build` pads them.
    """
    sizes = [len(list(run)) for _, run in groupby(prompt.numpy().tobytes() for prompt in prompts)]
    if len(set(sizes)) != 1 or sizes[0] == 1:
        return 0, 0
    n, size = len(sizes), sizes[0]
    heads, tails = [], []
    for first in range(0, len(prompts), size):
        (tree,), _ = _trees(prompts[first : first + size], responses[first : first + size])
        heads.append(len(tree.prompt))
        tails.append(len(tree.tokens))
    for parts in (number for number in range(1, n + 1) if n % number == 0):
        # Any run of so many groups is measured, not only this rank's parts: ranks agree on the largest number that one
        # of them needs, and with more parts than it asked for a rank's parts begin elsewhere.
        widest = sum(sliding_window_view(lengths, n // parts).max(1) for lengths in (heads, tails))
        if widest.max() * (n // parts) <= limit:
            return n, parts
    return 0, 0
