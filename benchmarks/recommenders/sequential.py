"""SASRec and GRU4Rec: the next item from the ids before it, full softmax over the items.

SASRec: Kang and McAuley 2018 (arXiv 1808.09781), with the cross entropy over all items that Klenitskiy and Vasilev 2023
(arXiv 2309.07602) found it to want; GRU4Rec: Hidasi et al. 2016 (arXiv 1511.06939), same loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.recommenders.base import Options, Sequences, Training, first_unskipped, mean_ndcg, train_epochs


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
        found: list[list[int]] = []
        for first in range(0, len(histories), 256):
            # A history without a known item is read as one pad, whose ranking is that of no history at all.
            rows = [self.encode(h)[-self.options.max_items :] or [0] for h in histories[first : first + 256]]
            last = torch.tensor([len(r) - 1 for r in rows])
            hidden = self.net(_pad(rows).to(self.options.place))[torch.arange(len(rows)), last]
            scores = hidden @ self.net.items.weight[1:].T
            widest = max((len(s) for s in skip[first : first + 256]), default=0)
            best = scores.topk(min(n + widest, len(self.items))).indices.tolist()
            for order, s in zip(best, skip[first : first + 256], strict=True):
                found.append(first_unskipped([self.items[i] for i in order], n, s))
        return found


def fit(
    make: type[SasRecNet] | type[Gru4RecNet], training: Training, options: Options, validation: Sequences | None = None
) -> SequentialRecommender:
    """Train a net; without ``validation`` sequences a tenth of the users is held out to stop by."""
    items = training.items()
    if validation is None:
        training, validation = training.split(options.seed)
    torch.manual_seed(options.seed)
    net = make(len(items), options).to(options.place)
    recommender = SequentialRecommender(net, items, options)
    windows = [w for s in training.whole() for w in _windows(recommender.encode(s), options.max_items)]

    def batches(rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = rng.permutation(len(windows))
        for first in range(0, len(order), options.batch_size):
            chosen = [windows[i] for i in order[first : first + options.batch_size]]
            ids, target = _pad([ids[:-1] for ids, _ in chosen]), _pad([ids[1:] for ids, _ in chosen])
            for row, (_, known) in enumerate(chosen):
                target[row, :known] = 0
            yield ids.to(options.place), target.to(options.place)

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        ids, target = batch
        hidden = net(ids)[target > 0]
        return nn.functional.cross_entropy(hidden @ net.items.weight[1:].T, target[target > 0] - 1)

    name = make.__name__.removesuffix("Net").lower()
    train_epochs(net, batches, loss_of, lambda: mean_ndcg(recommender, validation), options, name)
    return recommender


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
    padded = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = torch.tensor(row)
    return padded
