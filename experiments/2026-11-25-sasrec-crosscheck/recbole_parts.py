"""RecBole's SASRec and metrics on random input, run by parts.py in an environment of its own.

python recbole_parts.py <output.npz>
"""

import sys

import numpy as np
import torch
from recbole.config import Config
from recbole.evaluator.metrics import NDCG, Hit, Recall
from recbole.model.sequential_recommender.sasrec import SASRec

N_ITEMS, LENGTH, USERS, K = 50, 12, 20, 10


class Items:
    """What SASRec asks of a dataset: how many items there are, the pad included."""

    def num(self, field: str) -> int:
        return N_ITEMS + 1


def main() -> None:
    settings = {
        "hidden_size": 16,
        "inner_size": 64,
        "n_layers": 2,
        "n_heads": 2,
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        "loss_type": "CE",
        "layer_norm_eps": 1e-5,
        "train_neg_sample_args": None,
        "use_gpu": False,
        "topk": [1, 5, K],
        "metrics": ["Hit", "Recall", "NDCG"],
        "state": "ERROR",
    }
    output = sys.argv.pop()
    config = Config(model="SASRec", dataset="data", config_dict=settings)
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    model = SASRec(config, Items()).eval()
    for parameter in model.parameters():  # so that norms and biases are not the identity
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    lengths = rng.integers(1, LENGTH + 1, USERS)
    ids = np.where(np.arange(LENGTH) < lengths[:, None], rng.integers(1, N_ITEMS + 1, (USERS, LENGTH)), 0)
    with torch.inference_mode():
        hidden = model(torch.tensor(ids), torch.tensor(lengths))
        scores = hidden @ model.item_embedding.weight.T
    ranked = np.stack([rng.permutation(N_ITEMS)[:K] for _ in range(USERS)])
    answers = [rng.choice(N_ITEMS, n, replace=False) for n in rng.integers(1, 8, USERS)]
    hits = np.stack([np.isin(r, a) for r, a in zip(ranked, answers, strict=True)])
    counts = np.array([len(a) for a in answers])
    metrics = {
        "pass": Hit(config).metric_info(hits),
        "recall": Recall(config).metric_info(hits, counts),
        "ndcg": NDCG(config).metric_info(hits, counts),
    }
    weights = {f"weight {name}": value.numpy() for name, value in model.state_dict().items()}
    padded = np.array([[*a, *[-1] * (8 - len(a))] for a in answers])
    inputs = {"ids": ids, "lengths": lengths, "scores": scores.numpy(), "ranked": ranked, "answers": padded}
    np.savez(output, **inputs, **metrics, **weights)


if __name__ == "__main__":
    main()
