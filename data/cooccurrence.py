"""Item embeddings from what is watched together: positive pointwise mutual information, reduced by truncated SVD.

    python cooccurrence.py --input onerec_bench_release.parquet --output_path item_cooccurrence.parquet --dim 64

Pairs are items of one training user (split 0) at most five places apart, nearer ones counting more (1 / distance);
test and validation rows are never read. After Levy and Goldberg, NIPS 2014 (PMI as what skip-gram factorises), with
the context distribution smoothed by the power 0.75 (Levy, Goldberg and Dagan, TACL 2015). Of each item's row the 4,096
largest values are kept. An item that no training user watched gets no row; tokenizer/embed_items.py --concat joins
these to the embeddings of the text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.onerec_data.batch import NO_PID, TRAIN_SPLIT, Batch
from data.onerec_data.build import Built
from data.onerec_data.layout import Layout, load_layout
from data.onerec_data.users import Users
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import SEED, WIDTH, ArgumentParser
from onerec.parquet import embedding_table, write_table
from onerec.run import Manifest, progress
from onerec.sparse import BLOCK, Pairs, best_of_rows, row_blocks, svd_vectors

SMOOTHING = 0.75
KEPT = 4096  # values of an item's row, its largest: what only the most popular items of a large catalogue exceed
WINDOW = 5  # places between two items of a pair, at most
ITERATIONS, FEW = 10, 5  # of the SVD; FEW is scikit-learn's own number, for matrices of MANY values, which take minutes
MANY = 10_000_000


def sequences(users: Users, layout: Layout, domains: Sequence[str], left_out: Built) -> Iterator[np.ndarray]:
    """Every training row's items by domain, oldest first: history, then targets. Of a user the first window alone."""
    for data in users:
        batch = Batch(data, layout)
        # The later windows of a user repeat parts of the first.
        rows = [row for row in range(batch.n) if batch.split[row] == TRAIN_SPLIT and not batch.windows[row]]
        for domain in domains:
            history, target = (batch.lists(f"{side}_{domain}_pid") for side in ("hist", "target"))
            for row in rows:
                items = np.concatenate([history.row(row), target.row(row)])
                yield items[items != NO_PID]
        left_out.count(batch)


def ppmi(pairs: Pairs, most: int = KEPT):
    """Positive pointwise mutual information of ``pairs``, sparse float32 [n, n]; of a row the ``most`` largest values.

    Made for a block of items at a time (`onerec.sparse`), so that the counts are never held together.
    """
    import scipy.sparse as sparse

    margin = pairs.margin()
    total, context = margin.sum(), margin**SMOOTHING
    context /= context.sum()
    parts = []
    blocks = row_blocks(pairs.most, BLOCK)
    for first, last in progress(blocks, "pairs", pairs.n, "item", size=lambda block: block[1] - block[0]):
        counts = pairs.rows(first, last)
        own = np.repeat(margin[first:last] / total, np.diff(counts.indptr))
        values = np.log(counts.data / total / (own * context[counts.indices]))
        values[values < 0] = 0
        block = sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)
        block.eliminate_zeros()
        longest = np.diff(block.indptr).max(initial=0)
        parts.append((best_of_rows(block, most) if longest > most else block).astype(np.float32))
    matrix = sparse.vstack(parts, format="csr")
    matrix.sort_indices()
    return matrix


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--input", type=Path, required=True, help="users' table of the release, or of --layout")
    parser.add_argument("--output_path", type=Path, required=True, help="Parquet file with pid and embedding")
    parser.add_argument("--layout", default="release", help="release, simple, or a JSON file")
    parser.add_argument("--dim", type=WIDTH, default=64, help="dimensions")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of the SVD")
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    manifest, layout = Manifest("cooccurrence", args), load_layout(args.layout)
    parts = [f"{side}_video_pid" for side in ("hist", "target")]
    users = Users(args.input, parts, [], layout)
    left_out = Built()
    found = list(sequences(users, layout, ["video"], left_out))
    users.note(manifest, left_out, args.max_bad_ratio)
    pids, places = np.unique(np.concatenate(found) if found else np.empty(0, np.int64), return_inverse=True)
    if len(pids) < 3:
        raise InputError(args.input, f"has {len(pids)} items in its training rows", "at least three")
    pairs = Pairs(places, list(map(len, found)), len(pids), WINDOW)
    if not pairs.margin().any():
        raise InputError(args.input, "has no two items in one training row", "histories of two items or more")
    matrix = ppmi(pairs)
    vectors = svd_vectors(matrix, args.dim, args.seed, n_iter=ITERATIONS if matrix.nnz < MANY else FEW)
    write_table(args.output_path, embedding_table(pids, vectors))
    manifest.output(args.output_path, len(pids))
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    counts = f"{len(pids):,} items from {len(found):,} training users"
    print(f"embedded {counts} in {args.output_path}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
