"""What the softmax of a SASRec step costs over all items and over drawn ones, and how far their gradients are apart.

    OMP_NUM_THREADS=1 python softmax.py [--weights <state dict of SasRecNet>]

Processor seconds for 1,024 targets of a catalogue of Beauty's size, forward and backward. Without weights, of random
ones. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from benchmarks.recommenders.sequential import softmax_loss
from onerec.cli import cli
from onerec.flags import COUNT, ArgumentParser

ITEMS, TARGETS, DIM = 12_101, 1_024, 64
NEGATIVES = (1_024, 2_048, 4_096, ITEMS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--weights", type=Path, help="state dict of a trained SasRecNet")
    parser.add_argument("--repeats", type=COUNT, default=10, help="steps that are timed")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    items = 0.02 * torch.randn(ITEMS, DIM)
    if args.weights:
        items = torch.load(args.weights, weights_only=True)["items.weight"][1:]
    target = torch.randint(len(items), (TARGETS,))
    # Behind the last layer norm a state has the length of a normalised vector; near its target, as when trained.
    hidden = torch.nn.functional.layer_norm(items[target] + items.std() * torch.randn(TARGETS, items.shape[1]), [DIM])
    hidden.requires_grad_()
    items.requires_grad_()

    def gradients(negatives: int) -> tuple[float, torch.Tensor]:
        loss = softmax_loss(hidden, items, target, negatives)
        found = torch.autograd.grad(loss, (hidden, items))
        return float(loss.detach()), torch.cat([part.ravel() for part in found])

    _, exact = gradients(ITEMS)
    for negatives in NEGATIVES:
        gradients(negatives)
        start = time.process_time()
        losses, found = zip(*(gradients(negatives) for _ in range(args.repeats)), strict=True)
        seconds = (time.process_time() - start) / args.repeats
        cosine = torch.nn.functional.cosine_similarity(torch.stack(found), exact[None], dim=1).mean()
        row = {"negatives": negatives, "seconds": round(seconds, 4), "loss": round(sum(losses) / args.repeats, 4)}
        print(json.dumps(row | {"cosine of the gradients": round(float(cosine), 4)}), flush=True)


if __name__ == "__main__":
    cli(main)()
