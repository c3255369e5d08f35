"""Our SASRec and metrics against RecBole's, number by number: the same weights give the same scores, the same
rankings the same Hit, Recall and NDCG. Takes seconds; sasrec.py, which trains both, takes hours.

    python parts.py --recbole_python recbole-env/bin/python
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from benchmarks.metrics import ndcg_at_k, pass_at_k, recall_at_k
from benchmarks.recommenders.base import Options
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser

# RecBole's names of a layer's parameters, and ours (torch.nn.TransformerEncoderLayer).
_LAYER = {
    "multi_head_attention.dense": "self_attn.out_proj",
    "multi_head_attention.LayerNorm": "norm1",
    "feed_forward.dense_1": "linear1",
    "feed_forward.dense_2": "linear2",
    "feed_forward.LayerNorm": "norm2",
}


def our_weights(theirs: Mapping[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """RecBole's SASRec parameters under the names of `SasRecNet`."""
    found = {
        "items.weight": theirs["item_embedding.weight"],
        "places.weight": theirs["position_embedding.weight"],
        "norm.weight": theirs["LayerNorm.weight"],
        "norm.bias": theirs["LayerNorm.bias"],
    }
    for layer in range(layers):
        left, right = f"trm_encoder.layer.{layer}.", f"encoder.layers.{layer}."
        for kind in ("weight", "bias"):
            for name, ours in _LAYER.items():
                found[f"{right}{ours}.{kind}"] = theirs[f"{left}{name}.{kind}"]
            parts = [theirs[f"{left}multi_head_attention.{name}.{kind}"] for name in ("query", "key", "value")]
            found[f"{right}self_attn.in_proj_{kind}"] = np.concatenate(parts)
    return found


def compare(theirs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Largest difference of the scores and of each metric."""
    import torch

    from benchmarks.recommenders.sequential import SasRecNet

    weights = {name.removeprefix("weight "): x for name, x in theirs.items() if name.startswith("weight ")}
    n_items, dim = weights["item_embedding.weight"].shape
    length = theirs["ids"].shape[1]
    inner = weights["trm_encoder.layer.0.feed_forward.dense_1.weight"].shape[0]
    if inner != 4 * dim:
        raise ValueError(f"an inner width of {inner}; ours is {4 * dim}")
    net = SasRecNet(n_items - 1, Options(dim=dim, layers=2, heads=2, max_items=length)).eval()
    net.load_state_dict({name: torch.tensor(x) for name, x in our_weights(weights, 2).items()})
    with torch.inference_mode():
        hidden = net(torch.tensor(theirs["ids"]))[torch.arange(len(theirs["ids"])), torch.tensor(theirs["lengths"]) - 1]
        scores = (hidden @ net.items.weight.T).numpy()
    found = {"SASRec scores": float(np.abs(scores - theirs["scores"]).max())}
    answers = [[x for x in row if x >= 0] for row in theirs["answers"].tolist()]
    for name, function in (("pass", pass_at_k), ("recall", recall_at_k), ("ndcg", ndcg_at_k)):
        ours = [
            [function(r, a, k + 1) for k in range(theirs[name].shape[1])]
            for r, a in zip(theirs["ranked"].tolist(), answers, strict=True)
        ]
        found[f"{name}@k"] = float(np.abs(np.array(ours) - theirs[name]).max())
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--recbole_python", required=True, help="python of an environment with RecBole")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "recbole.npz"
        script = Path(__file__).with_name("recbole_parts.py")
        command = [args.recbole_python, str(script), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            what = f"RecBole failed ({done.stderr.strip().splitlines()[-1]})"
            raise InputError(args.recbole_python, what, "an environment with RecBole")
        found = compare(dict(np.load(output)))
    for name, difference in found.items():
        print(f"{name:14s} largest difference {difference:.1e}")
    return int(max(found.values()) > 1e-4)


if __name__ == "__main__":
    cli(main)()
