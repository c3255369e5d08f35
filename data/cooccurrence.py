"""Item embeddings from what is watched together: positive pointwise mutual information, reduced by truncated SVD.

    python cooccurrence.py --input raw_data/onerec_data/onerec_bench_release.parquet --output_path item_cooccurrence.parquet --dim 64

Pairs are items of one training user (split 0) at most --window places apart, nearer ones counting more (1 / distance);
test and validation rows are never read. After Levy and Goldberg, NIPS 2014 (PMI as what skip-gram factorises), with
the context distribution smoothed by the power 0.75 (Levy, Goldberg and Dagan, TACL 2015). An item that no training
user watched gets no row; tokenizer/embed_items.py --concat joins these to the embeddings of the text.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.onerec_data.batch import NO_PID, TRAIN_SPLIT, Batch
from data.onerec_data.layout import Layout, load_layout
from data.onerec_data.users import Users
from onerec.errors import InputError, cli
from onerec.parquet import write_table
from onerec.run import Manifest, progress

SMOOTHING = 0.75
_DOMAINS = ("video", "ad", "goods")


def sequences(users: Users, layout: Layout, domain: str) -> Iterator[np.ndarray]:
    """Every training row's items of a domain, oldest first: history, then targets. One row a user: the longest first seen."""
    for data in users:
        batch = Batch(data, layout)
        history, target = (batch.lists(f"{side}_{domain}_pid") for side in ("hist", "target"))
        for row in range(batch.n):
            if batch.split[row] != TRAIN_SPLIT or batch.windows[row]:
                continue  # the later windows of a user repeat parts of the first
            parts = [lists.values[lists.offsets[row] : lists.offsets[row + 1]] for lists in (history, target)]
            items = np.concatenate(parts)
            yield items[items != NO_PID]


def pair_counts(items: Sequence[np.ndarray], window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns, weights) of the pairs at most ``window`` places apart, one direction; 1 / distance each."""
    rows, columns, weights = [], [], []
    for distance in range(1, window + 1):
        for sequence in items:
            rows.append(sequence[:-distance])
            columns.append(sequence[distance:])
            weights.append(np.full(max(len(sequence) - distance, 0), 1 / distance))
    return tuple(np.concatenate(part) if part else np.empty(0, np.int64) for part in (rows, columns, weights))


def ppmi_svd(counts, dim: int, seed: int) -> np.ndarray:
    """Embeddings float32 [n, dim], unit length, of a symmetric sparse matrix of counts [n, n]."""
    import scipy.sparse as sparse
    from sklearn.decomposition import TruncatedSVD

    total = counts.sum()
    margin = np.asarray(counts.sum(axis=0)).ravel()
    context = margin**SMOOTHING
    context /= context.sum()
    matrix = counts.tocoo()
    pmi = np.log(matrix.data / total / (margin[matrix.row] / total * context[matrix.col]))
    positive = sparse.coo_matrix((np.maximum(pmi, 0), (matrix.row, matrix.col)), shape=counts.shape).tocsr()
    rank = min(dim, counts.shape[0] - 1)
    vectors = TruncatedSVD(rank, n_iter=10, random_state=seed).fit_transform(positive)
    vectors = np.pad(vectors, ((0, 0), (0, dim - rank)))
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norm == 0, 1, norm)).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> None:
    import scipy.sparse as sparse

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="users' table of the release, or of --layout"
    )
    parser.add_argument("--output_path", type=Path, required=True, help="Parquet file with pid and embedding")
    parser.add_argument("--domain", choices=_DOMAINS, default="video", help="whose items")
    parser.add_argument("--layout", default="release", help="release, simple, or a JSON file")
    parser.add_argument("--dim", type=int, default=64, help="dimensions")
    parser.add_argument("--window", type=int, default=5, help="places between two items of a pair, at most")
    parser.add_argument("--seed", type=int, default=0, help="seed of the SVD")
    args = parser.parse_args(argv)
    for name in ("dim", "window"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}", f"{getattr(args, name)} is not a positive number", "1 or more")
    manifest, layout = Manifest("cooccurrence", args), load_layout(args.layout)
    parts = [f"{side}_{args.domain}_pid" for side in ("hist", "target")]
    users = Users(args.input, parts, [], layout)
    found = list(sequences(users, layout, args.domain))
    pids, places = np.unique(np.concatenate(found) if found else np.empty(0, np.int64), return_inverse=True)
    if len(pids) < 3:
        raise InputError(args.input, f"has {len(pids)} items in its training rows", "at least three")
    ends = np.cumsum([0, *map(len, found)])
    indexed = [places[a:b] for a, b in itertools.pairwise(ends)]
    rows, columns, weights = pair_counts(list(progress(indexed, "pairs", unit="user")), args.window)
    if not len(rows):
        raise InputError(args.input, "has no two items in one training row", "histories of two items or more")
    one_way = sparse.coo_matrix((weights, (rows, columns)), shape=(len(pids), len(pids))).tocsr()
    vectors = ppmi_svd(one_way + one_way.T, args.dim, args.seed)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), args.dim)
    write_table(args.output_path, pa.table({"pid": pa.array(pids), "embedding": lists}))
    manifest.input(args.input, users.rows)
    manifest.output(args.output_path, len(pids))
    manifest.write(args.output_path.parent, f"{args.output_path.stem}.manifest.json")
    print(
        f"embedded {len(pids):,} items from {len(found):,} training users in {args.output_path}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
