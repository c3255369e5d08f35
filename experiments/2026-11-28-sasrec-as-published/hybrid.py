"""SASRec and decayed transitions that rank together: log p + w · log prior over all items, w by validation users.

    python hybrid.py --data_dir <benchmark_data> --validation_dir <benchmark_data> --seed 0 [--epochs 20]

The prior is that of benchmarks/prior.py, its floor and weights too; the history's items are left out. Prints JSON: the
curve of w on validation users, then the test users by SASRec alone, the prior alone and both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from benchmarks.baselines import load_training, load_validation
from benchmarks.catalogues import BenchData
from benchmarks.prior import FLOOR, WEIGHTS, PriorFile
from benchmarks.recommenders.base import Options, Sequences, Training
from benchmarks.recommenders.sequential import SasRecNet, SequentialRecommender, fit
from benchmarks.recommenders.transitions import DecayedTransitions
from benchmarks.tasks import TASKS
from onerec.cli import cli
from onerec.flags import COUNT, COUNT_OR_ALL, SEED, ArgumentParser

BLOCK = 256


@torch.inference_mode()
def log_scores(net: SequentialRecommender, prior: PriorFile, rows: Sequences) -> tuple[torch.Tensor, torch.Tensor]:
    """(log p, log prior), float32 [n, items]; an item of the history is at minus infinity in the former."""
    histories = [net.encode(history) for history, _ in rows]
    batch = torch.zeros(len(rows), net.options.max_items, dtype=torch.int64)
    for row, history in enumerate(histories):
        kept = history[-net.options.max_items :]
        batch[row, : len(kept)] = torch.tensor(kept)
    last = (batch > 0).sum(1).clamp(min=1) - 1
    hidden = net.net(batch[:, : int(last.max()) + 1])[torch.arange(len(rows)), last]
    log_p = torch.log_softmax(hidden @ net.net.items.weight[1:].T, dim=1)
    log_prior = torch.full_like(log_p, FLOOR)
    for row, (history, _) in enumerate(rows):
        log_p[row, torch.tensor(histories[row], dtype=torch.int64) - 1] = -torch.inf
        pids, scores = prior.follows.score(history)
        places = [net.id_of[pid] - 1 for pid in pids.tolist()]
        log_prior[row, places] += torch.from_numpy(scores / prior.scale).float()
    return log_p, log_prior.log()


def gains(scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """float64 [n, 4]: recall@5, ndcg@5, recall@10 and ndcg@10 of one target each (int64 [n, 1]; -1: no known item).

    Of equal scores the target is the last, so that items of which nothing is known are no hits.
    """
    own = scores.gather(1, target.clamp(min=0))
    place = ((scores >= own).sum(1) - 1).double()
    place[target[:, 0] < 0] = torch.inf
    columns = []
    for k in (5, 10):
        hit = (place < k).double()
        columns += [hit, torch.where(hit > 0, 1 / torch.log2(place + 2), 0.0)]
    return torch.stack(columns, 1)


def measure(net: SequentialRecommender, prior: PriorFile, rows: Sequences, weights: Sequence[float]) -> np.ndarray:
    """Means [weights, 4]; the weight infinity is the prior alone."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    total = torch.zeros(len(weights), 4, dtype=torch.float64)
    for first in range(0, len(rows), BLOCK):
        block = rows[first : first + BLOCK]
        log_p, log_prior = log_scores(net, prior, block)
        target = torch.tensor([[net.id_of.get(targets[0], 0) - 1] for _, targets in block])
        for i, weight in enumerate(weights):
            seen = torch.where(log_p.isinf(), log_p, 0.0)
            both = log_prior + seen if np.isinf(weight) else log_p + weight * log_prior
            total[i] += gains(both, target).sum(0)
    return (total / len(rows)).numpy()


def trained(training: Training, options: Options, weights: Path | None) -> SequentialRecommender:
    """SASRec, or one of the same training whose weights were kept."""
    if weights is None:
        return fit(SasRecNet, training, options)
    items = training.items()
    net = SasRecNet(len(items), options).eval()
    net.load_state_dict(torch.load(weights, weights_only=True))
    return SequentialRecommender(net, items, options)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="benchmark_data of the test targets")
    add("--validation_dir", type=Path, required=True, help="benchmark_data of the validation targets")
    add(
        "--users",
        type=COUNT_OR_ALL,
        default=5000,
        help="validation users who choose the weight, drawn by seed 0; -1: all",
    )
    add("--weights", type=Path, help="state dict of a SasRecNet that was trained on these data")
    add("--epochs", type=COUNT, default=Options().epochs, help="epochs at most")
    add("--seed", type=SEED, default=0, help="seed of the training")
    args = parser.parse_args(argv)
    task = TASKS["video"]
    index = BenchData(args.data_dir).index(task)
    asked = argparse.Namespace(sample_size=-1, seed=0, exclude_seen=False, max_bad_ratio=0.01)
    validation, test = (load_validation(d, task, index, asked) for d in (args.validation_dir, args.data_dir))
    training = load_training(args.data_dir, task.name, index)
    training.validation = validation
    net = trained(training, Options(epochs=args.epochs, seed=args.seed, device="cpu", exclude_seen=True), args.weights)
    prior = PriorFile.of_transitions(DecayedTransitions(training).transitions)
    drawn = np.random.default_rng(0).permutation(len(validation))[: args.users if args.users > 0 else None]
    curve = measure(net, prior, [validation[i] for i in drawn], WEIGHTS)
    for weight, values in zip(WEIGHTS, curve, strict=True):
        print(json.dumps({"validation": len(drawn), "w": weight, "values": values.round(4).tolist()}), flush=True)
    best = WEIGHTS[int(curve[:, 3].argmax())]
    for side, values in zip(("SASRec", "prior", "both"), measure(net, prior, test, (0.0, np.inf, best)), strict=True):
        weight = best if side == "both" else None
        print(json.dumps({"test": len(test), "side": side, "w": weight, "values": values.round(4).tolist()}))


if __name__ == "__main__":
    cli(main)()
