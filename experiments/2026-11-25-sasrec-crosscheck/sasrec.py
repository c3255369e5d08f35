"""Our SASRec beside RecBole's on the same users, leave one out: is the baseline what the field calls SASRec?

    python sasrec.py --inter ml-100k/ml-100k.inter --recbole_python recbole-env/bin/python

Every user's last item is the test, the one before it validation, the whole catalogue is ranked, seen items included,
as RecBole does it for sequential models. RecBole reads the sequences from a file whose times are places in the
sequence, so that items of one second have one order on both sides; that its test items are ours is checked. Both
sides: two layers, two heads, the same width, dropout, learning rate and length of histories, cross entropy over all
items, and of the epochs the one with the best NDCG@10 on validation. RecBole learns from every beginning of a
sequence, one target each; ours from every position of runs in which a target of a long sequence has at least three
quarters of a history before it. Says the two means over seeds, and whether their difference is within the seeds' noise
(Welch's interval); the exit status is 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from benchmarks.metrics import ndcg_at_k, recall_at_k
from benchmarks.recommenders.base import Options, Training
from benchmarks.recommenders.sequential import SasRecNet, fit
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import SEED, ArgumentParser
from onerec.keeper import owned
from onerec.run import get_logger, write_json

SETTINGS = {"epochs": 20, "patience": 3, "max_items": 10, "dim": 32, "dropout": 0.2, "lr": 2e-3}  # of both
WINDOWS, BEGINNINGS = 32, 512  # a batch of ours, of RecBole's
LAST = 50  # of each user's items, to save hours
METRICS = ("recall@10", "ndcg@10")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    inter = "interactions in RecBole's form (user_id, item_id, …, timestamp)"
    add("--inter", type=Path, required=True, help=inter)
    add("--recbole_python", default="", help="python of an environment with RecBole (none: ours alone)")
    add("--seeds", type=SEED, nargs="+", default=[0, 1, 2, 3, 4], help="seeds")
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


def ours(sequences: dict[str, list[int]], seed: int) -> dict[str, float]:
    options = Options(**SETTINGS, batch_size=WINDOWS, seed=seed)
    users = list(sequences)
    validation = [(s[:-2], s[-2:-1]) for s in sequences.values()]
    training = Training([(s[:-3], s[-3:-2]) for s in sequences.values()], users=users, validation=validation)
    model = fit(SasRecNet, training, options)
    ranked = model.rank([s[:-1] for s in sequences.values()], 10, [()] * len(users))
    pairs = [(r, s[-1:]) for r, s in zip(ranked, sequences.values(), strict=True)]
    return {
        "recall@10": float(np.mean([recall_at_k(r, t, 10) for r, t in pairs])),
        "ndcg@10": float(np.mean([ndcg_at_k(r, t, 10) for r, t in pairs])),
    }


def write_sequences(path: Path, sequences: Mapping[str, Sequence[int]]) -> None:
    """The sequences in RecBole's form, with an item's place in its sequence as its time."""
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"{user}\t{item}\t{place}" for user, items in sequences.items() for place, item in enumerate(items)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def recboles(sequences: dict[str, list[int]], seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Test metrics of RecBole's SASRec in its own environment; raises `InputError` where it fails or tests others."""
    log = get_logger("crosscheck")
    script = Path(__file__).with_name("recbole_sasrec.py")
    settings = SETTINGS | {"seed": seed, "batch_size": BEGINNINGS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sequences(folder / "sequences.inter", sequences)
        command = [args.recbole_python, str(script), str(folder / "sequences.inter"), json.dumps(settings)]
        with open(folder / "errors", "w+") as errors:
            command.append(str(folder / "out.json"))
            with owned(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=folder) as run:
                for line in run.stdout:
                    if line.startswith("epoch "):
                        log.info(f"recbole: {line.strip()}")
            if run.returncode:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"exit status {run.returncode}"])[-1]
                raise InputError(args.recbole_python, f"RecBole failed ({last})", "an environment with RecBole")
        found = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    if {user: int(item) for user, item in found["targets"].items()} != {u: s[-1] for u, s in sequences.items()}:
        raise InputError(args.inter, "RecBole tests other items than every user's last", "RecBole 1.2.1")
    return {metric: found[metric] for metric in METRICS}


def within_noise(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float, bool]:
    """Mean difference over seeds, its 95 % interval (Welch 1947, unequal variances), and whether that holds 0."""
    from scipy.stats import t

    difference = float(np.mean(ours) - np.mean(theirs))
    errors = [float(np.var(side, ddof=1)) / len(side) for side in (ours, theirs)]
    error = sum(errors)
    if error == 0:  # no spread on either side
        return difference, difference, difference, difference == 0
    freedom = error**2 / sum(e**2 / (len(side) - 1) for e, side in zip(errors, (ours, theirs), strict=True))
    half = float(t.ppf(0.975, freedom)) * error**0.5
    return difference, difference - half, difference + half, abs(difference) <= half


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    log = get_logger("crosscheck")
    sequences = {user: items[-LAST:] for user, items in read_sequences(args.inter).items()}
    sides: dict[str, list[dict[str, float]]] = {"ours": []} | ({"recbole": []} if args.recbole_python else {})
    for seed in args.seeds:
        for name, side in sides.items():
            start = time.monotonic()
            value = ours(sequences, seed) if name == "ours" else recboles(sequences, seed, args)
            side.append(value)
            numbers = "  ".join(f"{m} {value[m]:.4f}" for m in METRICS)
            log.info(f"seed {seed} {name}: {numbers}  ({time.monotonic() - start:.0f} s)")
            if args.output:
                write_json(args.output, sides)
    failed = False
    for metric in METRICS:
        line = f"{metric:10s}"
        values = {name: np.array([v[metric] for v in side]) for name, side in sides.items()}
        for name, x in values.items():
            line += f"  {name} {x.mean():.4f}" + (f" (sd {x.std(ddof=1):.4f})" if len(x) > 1 else "")
        if len(values) == 2 and len(args.seeds) > 1:
            difference, low, high, same = within_noise(values["ours"], values["recbole"])
            line += f"  difference {difference:+.4f} ({low:+.4f} to {high:+.4f} over {len(args.seeds)} seeds)"
            line += ": within noise" if same else ": beyond noise"
            failed |= not same
        print(line)
    return int(failed)


if __name__ == "__main__":
    sys.exit(cli(main)())
