"""SASRec and GRU4Rec: the next item from the ids before it, full softmax over the items.

SASRec: Kang and McAuley 2018 (arXiv 1808.09781), with the cross entropy over all items that Klenitskiy and Vasilev 2023
(arXiv 2309.07602) found it to want; GRU4Rec: Hidasi et al. 2016 (arXiv 1511.06939), same loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.recommenders.base import Options, Training, first_unskipped, mean_ndcg, train_epochs

POOL = 8  # batches among whose windows those of about one length are put together


class SasRecNet(nn.Module):
    """Ids [B, L] (0 pads, on the right) to hidden states [B, L, dim]; a causal transformer over item and place."""

    def __init__(self, n_items: int, options: Options) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, options.dim, padding_idx=0)
        self.places = nn.Embedding(options.max_items, options.dim)
        self.norm, self.dropout = nn.LayerNorm(options.dim), nn.Dropout(options.dropout)
        layer = nn.TransformerEncoderLayer(
            options.dim, options.heads, 4 * options.dim, options.dropout, "gelu", batch_first=True
        )
        layer.dropout = nn.Identity()  # within the MLP, where SASRec has none
        self.encoder = nn.TransformerEncoder(layer, options.layers, enable_nested_tensor=False)
        _init(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        length = ids.shape[1]
        hidden = self.dropout(self.norm(self.items(ids) + self.places.weight[:length]))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=ids.device)
        return self.encoder(hidden, mask=mask, is_causal=True)


class Gru4RecNet(nn.Module):
    """Ids [B, L] (0 pads, on the right) to hidden states [B, L, dim]; one GRU layer of twice the width."""

    def __init__(self, n_items: int, options: Options) -> None:
        super().__init__()
        self.items = nn.Embedding(n_items + 1, options.dim, padding_idx=0)
        self.dropout = nn.Dropout(options.dropout)
        self.gru = nn.GRU(options.dim, 2 * options.dim, batch_first=True)
        self.out = nn.Linear(2 * options.dim, options.dim)
        _init(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(self.dropout(self.items(ids)))[0])


def _init(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)


class SequentialRecommender:
    """A net and the ids of its items."""

    def __init__(self, net: nn.Module, items: Sequence[int], options: Options) -> None:
        self.net, self.items, self.options = net, list(items), options
        self.id_of = {pid: i + 1 for i, pid in enumerate(items)}

    def encode(self, items: Sequence[int]) -> list[int]:
        """Ids of known items, in order."""
        return [self.id_of[pid] for pid in items if pid in self.id_of]

    @torch.inference_mode()
    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        # A history without a known item is read as one pad, whose ranking is that of no history at all.
        rows = [self.encode(history)[-self.options.max_items :] or [0] for history in histories]
        by_length = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found: list[list[int]] = [[] for _ in rows]
        for first in range(0, len(rows), 256):
            places = by_length[first : first + 256]
            last = torch.tensor([len(rows[place]) - 1 for place in places])
            hidden = self.net(_pad([rows[place] for place in places]).to(self.options.place))
            scores = hidden[torch.arange(len(places)), last] @ self.net.items.weight[1:].T
            widest = max(len(skip[place]) for place in places)
            best = scores.topk(min(n + widest, len(self.items))).indices.tolist()
            for place, order in zip(places, best, strict=True):
                found[place] = first_unskipped([self.items[i] for i in order], n, skip[place])
        return found


def fit(make: type[SasRecNet] | type[Gru4RecNet], training: Training, options: Options) -> SequentialRecommender:
    """Train a net until the validation users are ranked no better (`Training.split`)."""
    items = training.items()
    training, validation = training.split(options.seed)
    torch.manual_seed(options.seed)
    net = make(len(items), options).to(options.place)
    recommender = SequentialRecommender(net, items, options)
    windows = [w for s in training.whole() for w in _windows(recommender.encode(s), options.max_items)]
    lengths = np.array([len(ids) for ids, _ in windows])

    def batches(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for places in _batches(lengths, options.batch_size, rng):
            chosen = [windows[place] for place in places]
            ids, target = _pad([ids[:-1] for ids, _ in chosen]), _pad([ids[1:] for ids, _ in chosen])
            for row, (_, known) in enumerate(chosen):
                target[row, :known] = 0
            yield ids.to(options.place), target.to(options.place)

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        ids, target = batch
        learnt = target > 0
        return softmax_loss(net(ids)[learnt], net.items.weight[1:], target[learnt] - 1, options.negatives)

    name = make.__name__.removesuffix("Net").lower()
    train_epochs(net, batches, loss_of, lambda: mean_ndcg(recommender, validation, options.exclude_seen), options, name)
    return recommender


def softmax_loss(hidden: torch.Tensor, items: torch.Tensor, target: torch.Tensor, negatives: int) -> torch.Tensor:
    """Mean cross entropy of ``target`` (int64 [n]) over the rows of ``items`` [m, dim], from ``hidden`` [n, dim].

    Where there are more than ``negatives`` items, the sum over those that are nobody's target is estimated from so many
    drawn ones, each standing for as many as were not drawn (importance sampling, Jean et al. 2015, arXiv 1412.2007).
    """
    if len(items) <= negatives:
        return nn.functional.cross_entropy(hidden @ items.T, target)
    drawn = torch.randint(len(items), (negatives,), device=target.device)
    taken, places = torch.cat([target, drawn]).unique(return_inverse=True)
    target = places[: len(target)]
    others = torch.ones(len(taken), dtype=torch.bool, device=target.device)
    others[target] = False
    found = int(others.sum())
    stands_for = (len(items) - len(taken) + found) / max(1, found)
    weight = others * math.log(max(1.0, stands_for))
    return nn.functional.cross_entropy(torch.addmm(weight, hidden, items[taken].T), target)


def _batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Places of the windows of ``lengths``, ``size`` a batch on average, at random, but those of a batch about as long.

    Batches hold about as many items each: of a batch the mean loss is taken, and no item should count for less because
    it stands in a long window.
    """
    order = rng.permutation(len(lengths))
    most = size * lengths.mean()
    batches: list[np.ndarray] = []
    for first in range(0, len(order), POOL * size):
        pool = order[first : first + POOL * size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        number = np.cumsum(lengths[pool]) // most
        batches += np.split(pool, np.flatnonzero(np.diff(number)) + 1)
    return [batches[i] for i in rng.permutation(len(batches))]


def _windows(ids: list[int], size: int) -> Iterator[tuple[list[int], int]]:
    """(run of at most ``size`` + 1 ids, how many of its targets another run has): every item is predicted once.

    The first run predicts all its items; each later one begins a quarter of ``size`` on and predicts what is new, so
    that behind a long history nothing is learnt from a short one, as nothing is ranked from a short one either.
    """
    end = min(len(ids), size + 1)
    if end > 1:
        yield ids[:end], 0
    while end < len(ids):
        new = min(max(1, size // 4), len(ids) - end)
        end += new
        yield ids[end - size - 1 : end], size - new


def _pad(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of ids as one tensor, zeros on the right."""
    padded = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
