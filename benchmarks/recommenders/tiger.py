"""TIGER (Rajput et al. 2023, arXiv 2305.05065) with this project's SIDs and decoding: a small causal model from scratch
that reads the SIDs of a history and writes the next one. No text, no pretraining; what the language model adds is the
distance to it. The paper's encoder-decoder is a decoder alone here, so that `onerec.items.search` searches it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from benchmarks.catalogues import resolve, sids_of
from benchmarks.recommenders.base import Options, Training, mean_ndcg, train_epochs
from onerec.catalog import ItemIndex
from onerec.items.model import ItemModel
from onerec.items.search import find_items
from onerec.sid import SidSpec
from onerec.startup import load_transformers


class TigerRecommender:
    """The model and the catalogue. Token 0 pads; then come the itemic tokens, begin and end."""

    def __init__(self, index: ItemIndex, options: Options) -> None:
        import torch

        load_transformers()
        from transformers import Qwen3Config, Qwen3ForCausalLM

        self.index, self.options = index, options
        self.spec = SidSpec(index.spec.codebook_sizes, first_id=1)
        self.sid_of = sids_of(index)
        torch.manual_seed(options.seed)
        heads = max(1, options.tiger_dim // 32)
        config = Qwen3Config(
            vocab_size=self.spec.end_id + 1,
            hidden_size=options.tiger_dim,
            intermediate_size=4 * options.tiger_dim,
            num_hidden_layers=options.tiger_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=(options.tiger_items + 2) * (self.spec.n_layers + 1),
            attention_dropout=options.tiger_dropout,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.model = Qwen3ForCausalLM(config).to(options.place)

    def encode(self, items: Sequence[int]) -> list[int]:
        """Tokens of a history: begin and codes of every item that has a SID."""
        sids = [self.sid_of[pid] for pid in items if pid in self.sid_of]
        tokens = self.spec.token_ids(np.array(sids, np.int64).reshape(-1, self.spec.n_layers))
        return np.insert(tokens, 0, self.spec.begin_id, axis=1).ravel().tolist()

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        self.model.eval()
        width = self.options.tiger_items * (self.spec.n_layers + 1)
        prompts = [self.encode(history)[-width:] for history in histories]
        banned = [self.index.sids_within(set(s)) for s in skip] if any(skip) else None
        beams = max(self.options.num_beams, n)
        engine = ItemModel.of(self.model, self.spec)
        found = find_items(engine, [[*p, self.spec.begin_id] for p in prompts], self.index, beams, 1 << 15, banned)
        ranked = [[h.codes for h in hypotheses] for hypotheses in found]
        return [resolve(self.index, sids, "all", skip=s)[:n] for sids, s in zip(ranked, skip, strict=True)]


def fit(training: Training, options: Options) -> TigerRecommender:
    """Train on every run of ``tiger_items`` + 1 items, each itemic token predicted from those before it."""
    import torch

    if training.index is None:
        raise ValueError("TIGER wants the catalogue's SIDs")
    rest, validation = training.split(options.seed)
    recommender = TigerRecommender(training.index, options)
    model, size = recommender.model, options.tiger_items + 1
    rows = []
    for sequence in rest.whole():
        items = [pid for pid in sequence if pid in recommender.sid_of]
        starts = {*range(0, max(1, len(items) - size + 1), max(1, size // 2)), max(0, len(items) - size)}
        rows += [recommender.encode(items[first : first + size]) for first in sorted(starts) if items]

    def batches(rng: np.random.Generator) -> Iterator[torch.Tensor]:
        order = rng.permutation(len(rows))
        for first in range(0, len(order), options.batch_size):
            chosen = [rows[i] for i in order[first : first + options.batch_size]]
            ids = torch.zeros(len(chosen), max(map(len, chosen)), dtype=torch.int64)
            for i, row in enumerate(chosen):
                ids[i, : len(row)] = torch.tensor(row)
            yield ids.to(options.place)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        # The begin tokens are not learnt: they stand where they must, and nobody generates them.
        labels = torch.where((ids > 0) & (ids < recommender.spec.begin_id), ids, -100)
        return model(input_ids=ids, labels=labels).loss

    def validate() -> float:
        return mean_ndcg(recommender, validation[:200], options.exclude_seen)

    train_epochs(model, batches, loss_of, validate, options, "tiger")
    return recommender
