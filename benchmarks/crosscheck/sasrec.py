"""Our SASRec beside RecBole's on the same users, leave one out: is the baseline what the field calls SASRec?

    python -m venv /tmp/recbole && /tmp/recbole/bin/pip install recbole     # a scratch environment, whatever it pulls in
    python crosscheck/sasrec.py --inter ml-100k/ml-100k.inter --recbole_python /tmp/recbole/bin/python --seeds 0 1 2

Every user's last item is the test, the one before it validation, the whole catalogue is ranked, seen items included, as
RecBole does it for sequential models. Both sides: dim 64, two layers, two heads, dropout 0.5, the same length of histories, cross entropy
over all items, learning rate 1e-3, the epoch with the best NDCG@10 on validation. RecBole learns from every beginning of a
sequence, ours from every position at once; both see each target once an epoch. Says the two means over seeds, their
difference and its standard error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.metrics import ndcg_at_k, recall_at_k
from benchmarks.recommenders.base import Options, Training
from benchmarks.recommenders.sequential import SasRecNet, fit
from onerec.errors import InputError, cli
from onerec.run import get_logger, write_json

METRICS = ("recall@10", "ndcg@10")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--inter",
        type=Path,
        required=True,
        help="interactions in RecBole's form (user_id, item_id, …, timestamp)",
    )
    add("--recbole_python", default="", help="python of an environment with RecBole (none: ours alone)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds")
    add("--epochs", type=int, default=200, help="epochs at most")
    add("--patience", type=int, default=10, help="epochs without a better validation before it stops")
    add("--max_items", type=int, default=50, help="items of a history")
    add("--batch_size", type=int, default=32, help="users a batch of ours; RecBole's has 2,048 beginnings")
    add("--output", type=Path, default=None, help="JSON file of both sides' numbers")
    return parser.parse_args(argv)


def read_sequences(path: Path) -> dict[str, list[int]]:
    """Every user's items by time, ties in the file's order; raises `InputError` where columns are missing."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [name.partition(":")[0] for name in lines[0].split("\t")] if lines else []
    if missing := {"user_id", "item_id", "timestamp"} - set(names):
        raise InputError(path, f"has no {', '.join(sorted(missing))}", "a file in RecBole's .inter form")
    user, item, time = (names.index(name) for name in ("user_id", "item_id", "timestamp"))
    rows = [line.split("\t") for line in lines[1:] if line]
    found: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: float(row[time])):
        found.setdefault(row[user], []).append(int(row[item]))
    return {name: items for name, items in found.items() if len(items) >= 3}


def ours(sequences: dict[str, list[int]], seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Test metrics of this project's SASRec."""
    options = Options(
        epochs=args.epochs,
        patience=args.patience,
        batch_size=args.batch_size,
        max_items=args.max_items,
        dropout=0.5,
        seed=seed,
    )
    users = list(sequences)
    training = Training([(s[:-3], s[-3:-2]) for s in sequences.values()], users=users)
    validation = [(s[:-2], s[-2:-1]) for s in sequences.values()]
    model = fit(SasRecNet, training, options, validation)
    ranked = model.rank([s[:-1] for s in sequences.values()], 10, [()] * len(users))
    pairs = [(r, s[-1:]) for r, s in zip(ranked, sequences.values(), strict=True)]
    return {
        "recall@10": float(np.mean([recall_at_k(r, t, 10) for r, t in pairs])),
        "ndcg@10": float(np.mean([ndcg_at_k(r, t, 10) for r, t in pairs])),
    }


def recboles(path: Path, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Test metrics of RecBole's SASRec, in its own environment."""
    script = Path(__file__).with_name("recbole_sasrec.py")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "metrics.json"
        numbers = [str(x) for x in (seed, args.epochs, args.patience, args.max_items)]
        command = [args.recbole_python, str(script), str(path), *numbers, str(output)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        if done.returncode:
            raise InputError(args.recbole_python, f"RecBole failed ({done.stderr.strip().splitlines()[-1]})", "an environment with RecBole")  # fmt: skip
        return json.loads(output.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    log = get_logger("crosscheck")
    sequences = read_sequences(args.inter)
    sides: dict[str, list[dict[str, float]]] = {"ours": []} | ({"recbole": []} if args.recbole_python else {})
    for seed in args.seeds:
        for name in sides:
            value = (
                ours(sequences, seed, args) if name == "ours" else recboles(args.inter.resolve(), seed, args)
            )
            sides[name].append(value)
            log.info(f"seed {seed} {name}: " + "  ".join(f"{m} {value[m]:.4f}" for m in METRICS))
    for metric in METRICS:
        line = f"{metric:10s}"
        values = {name: np.array([v[metric] for v in side]) for name, side in sides.items()}
        for name, x in values.items():
            line += f"  {name} {x.mean():.4f}" + (f" (sd {x.std(ddof=1):.4f})" if len(x) > 1 else "")
        if len(values) == 2 and len(args.seeds) > 1:
            a, b = values["ours"], values["recbole"]
            error = float(np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)))
            line += f"  difference {a.mean() - b.mean():+.4f}, standard error over seeds {error:.4f}"
            p = float(np.clip((a.mean() + b.mean()) / 2, 0, 1))
            users = float(np.sqrt(2 * p * (1 - p) / len(sequences)))
            line += f", of {len(sequences)} users at most {users:.4f}"
        print(line)
    if args.output:
        write_json(args.output, sides)


if __name__ == "__main__":
    sys.exit(cli(main)())
