"""What codebooks and what weight of co-occurrence fit a catalogue: no training, validation targets alone.

    python measure.py --data_dir <raw_data/onerec_data of an adapter, with a validation split> --output_dir <folder>

Prints a JSON line: items, users, interactions; for every weight how often the validation target is among the 50 items
nearest to the user's last one (cosine, the embeddings that the tokenizer gets); every candidate of choose_sizes.py at
--weight.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data import cooccurrence
from onerec.cli import cli
from onerec.flags import NOT_NEGATIVE, SHARE_ABOVE_0, SHARE_BELOW_1, ArgumentParser
from onerec.run import read_json
from onerec.sparse import unit
from tokenizer import choose_sizes, embed_items

WEIGHTS = (0, 0.5, 1, 2, 4, 8)
NEAREST, USERS, DIM = 50, 4000, 64


def vectors_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(pids, embeddings) of a file."""
    table = pq.read_table(path)
    return np.array(table["pid"]), np.array(table["embedding"].to_pylist(), np.float32)


def found(vectors: np.ndarray, last: np.ndarray, target: np.ndarray) -> float:
    """The share of targets among the nearest items of the last ones, as rows of ``vectors``."""
    scores = vectors[last] @ vectors.T
    scores[np.arange(len(last)), last] = -np.inf
    own = scores[np.arange(len(target)), target][:, None]
    return float(((scores > own).sum(1) < NEAREST).mean())


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="onerec_data folder with a validation split")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--weight", type=NOT_NEGATIVE, default=2, help="of co-occurrence, for the candidates")
    parser.add_argument("--max_collisions", type=SHARE_BELOW_1, default=0.05, help="at which the candidates end")
    parser.add_argument("--users", type=SHARE_ABOVE_0, default=1, help="share of the users, the rest is left out")
    args = parser.parse_args()
    out = args.output_dir
    out.mkdir(parents=True, exist_ok=True)
    log = pq.read_table(args.data_dir / "onerec_bench_release.parquet")
    if args.users < 1:
        uids = np.array(log["uid"])
        kept = np.unique(uids)[np.random.default_rng(0).random(len(np.unique(uids))) < args.users]
        log = log.filter(np.isin(uids, kept))
    pq.write_table(log, out / "log.parquet")
    rows = log.to_pylist()
    train = [row for row in rows if row["split"] == 0 and not row.get("window")]
    lengths = [len(row["hist_video_pid"]) + len(row["target_video_pid"]) for row in train]
    taken = {pid for row in train for pid in (*row["hist_video_pid"], *row["target_video_pid"])}
    captions = pq.read_table(args.data_dir / "pid2caption.parquet")
    if args.users < 1:  # a smaller shop has fewer items as well
        captions = captions.filter(np.isin(np.array(captions["pid"]), sorted(taken)))
    pq.write_table(captions, out / "captions.parquet")
    with contextlib.redirect_stdout(io.StringIO()):
        cooccurrence.main(["--input", str(out / "log.parquet"), "--output_path", str(out / "taken.parquet")])
        text = ["--input", str(out / "captions.parquet"), "--dim", str(DIM)]
        embed_items.main([*text, "--output_path", str(out / "text.parquet")])
        joined = ["--concat", f"{out / 'taken.parquet'}:{args.weight}", "--output_path", str(out / "joined.parquet")]
        embed_items.main([*text, *joined])
        sizes = ["--data_path", str(out / "joined.parquet"), "--output_path", str(out / "sizes.json")]
        dim = [
            "--dim",
            str(len(vectors_of(out / "joined.parquet")[1][0])),
            "--max_collisions",
            str(args.max_collisions),
        ]
        choose_sizes.main([*sizes, *dim, "--balanced"])
    pids, words = vectors_of(out / "text.parquet")
    place = {pid: row for row, pid in enumerate(pids.tolist())}
    some, vectors = vectors_of(out / "taken.parquet")
    both = np.zeros((len(pids), vectors.shape[1]), np.float32)
    for pid, vector in zip(some.tolist(), vectors, strict=True):
        if pid in place:
            both[place[pid]] = vector
    asked = [row for row in rows if row["split"] == 2]
    pairs = [(row["hist_video_pid"][-1], row["target_video_pid"][0]) for row in asked]
    pairs = [(place[a], place[b]) for a, b in pairs if a in place and b in place]
    drawn = np.random.default_rng(0).permutation(len(pairs))[:USERS]
    last, target = np.array(pairs)[drawn].T
    near = {f"{w:g}": found(unit(np.concatenate([words, w * both], 1)), last, target) for w in WEIGHTS}
    value = {"items": len(pids), "users": len(train), "interactions": sum(lengths), "asked": len(drawn), "near": near}
    value["tried"] = read_json(out / "sizes.json")["tried"]
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    cli(main)()
