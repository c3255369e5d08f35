"""A SID of its own for every item, where several have one: another last code, or one more code.

    python resolve_collisions.py --method reassign --pid2sid in.parquet --output_path sids/pid2sid.parquet \\
        --emb_path item_embedding.parquet --model_path out
    python resolve_collisions.py --method extra_layer --pid2sid a.parquet b.parquet --output_path c.parquet d.parquet

reassign     the item of a bucket that is nearest to what the SID stands for keeps it; every other moves to the
             nearest last code that is free behind the same codes, or stays and is counted
extra_layer  every item gets one more code, which numbers the items of a bucket (the fourth code of TIGER,
             arXiv 2305.05065)

Several tables (video and product) are of different pid spaces: each is resolved for itself, and all get one
specification, sid_spec.json beside every output, by which the vocabulary is to be expanded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.catalog import read_pid2sid
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.flags import ArgumentParser
from onerec.folders import clear, together
from onerec.parquet import write_batches
from onerec.run import Manifest
from onerec.sid import LAYER_LETTERS, SidSpec
from tokenizer.embeddings import first_of_pids, iter_embeddings
from tokenizer.quantizer import SCHEMA, Quantizer, codes_batches, load_quantizer

METHODS = ("reassign", "extra_layer")
_CELLS = 1 << 24  # of a table of distances at a time


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--method", choices=METHODS, required=True, help="as above")
    add("--pid2sid", type=Path, nargs="+", required=True, help="tables of pid and codes, sid_spec.json beside them")
    add("--output_path", type=Path, nargs="+", required=True, help="a file for every table; may be the same")
    add("--emb_path", nargs="*", default=[], help="reassign: the embeddings of every table's items")
    add("--model_path", type=Path, help="reassign: model.pt or its folder")
    parser.add_max_bad_ratio()
    return parser.parse_args(argv)


def buckets(codes: np.ndarray, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order, place): items sorted by SID and within it by ``rank``, and each sorted item's place in its bucket."""
    order = np.lexsort((rank, *codes.T[::-1]))
    ordered = codes[order]
    new = np.ones(len(order), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(1)
    starts = np.flatnonzero(new)
    return order, np.arange(len(order)) - starts[np.cumsum(new) - 1]


def bucket_vectors(path: str, pids: np.ndarray, wanted: np.ndarray, model: Quantizer, manifest: Manifest) -> np.ndarray:
    """Vectors float32 [len(wanted), dim] of the rows ``wanted`` of ``pids``, as the model quantises them."""
    rows = pd.Index(pids[wanted])
    vectors, found = np.zeros((len(wanted), model.dim), np.float32), np.zeros(len(wanted), bool)
    for some, batch in iter_embeddings(path, model.dim, manifest, first=first_of_pids(path)):
        place = rows.get_indexer(some)
        known = place >= 0
        vectors[place[known]] = model.prepare(batch[known])
        found[place[known]] = True
    if not found.all():
        missing = pids[wanted][~found]
        what = f"has no embedding of {len(missing)} items, pid {missing[0]} the first"
        raise InputError(path, what, "embeddings of every item of --pid2sid")
    return vectors


def reassign(
    pids: np.ndarray, codes: np.ndarray, path: str, model: Quantizer, manifest: Manifest
) -> tuple[np.ndarray, int, int]:
    """(codes after moving items to free last codes, number of items moved, number that still share a SID)."""
    order, place = buckets(codes, pids)
    sizes = np.diff(np.append(np.flatnonzero(place == 0), len(place)))
    shared = order[np.repeat(sizes, sizes) > 1]  # rows of items that share their SID
    if not len(shared):
        return codes, 0, 0
    codes = codes.copy()
    vectors = bucket_vectors(path, pids, shared, model, manifest)
    distance = ((vectors - model.decode(codes[shared])) ** 2).sum(1)
    rank = np.empty(len(shared), np.int64)
    rank[np.lexsort((pids[shared], distance))] = np.arange(len(shared))
    by_sid, turn = buckets(codes[shared], rank)
    movers = np.sort(by_sid[turn > 0])
    size, moved = model.codebook_sizes[-1], 0
    prefixes, group = np.unique(codes[:, :-1], axis=0, return_inverse=True)
    group = group.reshape(-1)
    by_group = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[by_group], np.arange(len(prefixes) + 1))
    mover_group = group[shared[movers]]
    for number in np.unique(mover_group).tolist():
        mine = movers[mover_group == number]
        taken = np.unique(codes[by_group[bounds[number] : bounds[number + 1]], -1])
        free = np.setdiff1d(np.arange(size), taken)
        if not len(free):
            continue
        candidates = np.column_stack([np.repeat(prefixes[number][None], len(free), 0), free])
        pairs = nearest_pairs(vectors[mine], model.decode(candidates), pids[shared[mine]])
        for item, code in pairs:
            codes[shared[mine[item]], -1] = free[code]
        moved += len(pairs)
    return codes, moved, len(movers) - moved


def nearest_pairs(vectors: np.ndarray, points: np.ndarray, pids: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (vector, point), each at most once, taken in order of their distance; equal ones by pid, then by point."""
    pairs: list[tuple[int, int]] = []
    # Where the table would be too large, the vectors come in turns by pid.
    rows = max(1, _CELLS // len(points))
    free = np.arange(len(points))
    by_pid = np.argsort(pids)
    for start in range(0, len(vectors), rows):
        some = by_pid[start : start + rows]
        if not len(free):
            break
        here = points[free]
        distance = (here**2).sum(1) - 2 * vectors[some] @ here.T + (vectors[some] ** 2).sum(1)[:, None]
        waiting, open_ = np.ones(len(some), bool), np.ones(len(free), bool)
        for flat in np.argsort(distance, axis=None, kind="stable").tolist():
            i, j = divmod(flat, len(free))
            if waiting[i] and open_[j]:
                waiting[i] = open_[j] = False
                pairs.append((int(some[i]), int(free[j])))
                if not waiting.any() or not open_.any():
                    break
        free = free[open_]
    return pairs


def check(args: argparse.Namespace) -> SidSpec:
    """The specification of the inputs; raises `InputError` where arguments do not go together."""
    if len(args.output_path) != len(args.pid2sid):
        what = f"names {len(args.output_path)} files for {len(args.pid2sid)} tables"
        raise InputError("--output_path", what, "one for every --pid2sid")
    specs = [SidSpec.load(path.parent / SID_SPEC) for path in args.pid2sid]
    for path, spec in zip(args.pid2sid, specs, strict=True):
        if not spec.same_codebooks(specs[0]):
            right = f"those of {args.pid2sid[0]}: {specs[0].codebook_sizes}"
            raise InputError(path, f"has codebooks {spec.codebook_sizes}", right)
        if spec.collision != "none":
            raise InputError(path, f"was resolved before ({spec.collision})", "the table of infer_res_kmeans.py")
    if args.method == "reassign":
        if not args.model_path or len(args.emb_path) != len(args.pid2sid):
            right = "--model_path, and an --emb_path for every --pid2sid"
            raise InputError("--method", "reassign measures distances", right)
    elif args.model_path or args.emb_path:
        raise InputError("--emb_path, --model_path", f"are not used by {args.method}", "leave them out")
    if args.method == "extra_layer" and specs[0].n_layers == len(LAYER_LETTERS):
        right = f"fewer than {len(LAYER_LETTERS)}, to add one"
        raise InputError(args.pid2sid[0], f"has {specs[0].n_layers} layers", right)
    return specs[0]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    manifest = Manifest("resolve_collisions", args)
    if any([clear(folder) for folder in {path.parent for path in args.output_path} if folder.is_dir()]):
        print("a run that was killed had resolved the tables already; they are in place now")
        return
    spec = check(args)
    tables = [read_pid2sid(path, spec) for path in args.pid2sid]
    model = load_quantizer(args.model_path) if args.method == "reassign" else None
    if model and model.codebook_sizes != spec.codebook_sizes:
        right = f"those of {args.pid2sid[0]}: {spec.codebook_sizes}"
        raise InputError(args.model_path, f"has codebooks {model.codebook_sizes}", right)
    results, lines = [], []
    for number, (path, (pids, codes)) in enumerate(zip(args.pid2sid, tables, strict=True)):
        manifest.input(path, len(pids))
        note = ""
        if args.method == "reassign":
            new, moved, left = reassign(pids, codes, args.emb_path[number], model, manifest)
            manifest.extra.setdefault("moved", []).append(moved)
            manifest.extra.setdefault("left_in_collision", []).append(left)
            note = f", {moved:,} moved, {left:,} found no free code"
        else:
            order, place = buckets(codes, pids)
            new = np.column_stack([codes, place[np.argsort(order)]])
        distinct = [len(np.unique(some, axis=0)) for some in (codes, new)]
        lines.append(
            f"{path.name}: {len(pids):,} items, {distinct[0]:,} distinct SIDs before, {distinct[1]:,} after{note}"
        )
        results.append((pids, new))
    bad = sum(manifest.dropped.values())
    manifest.check_bad_ratio(args.pid2sid[0], bad, sum(n or 0 for n in manifest.inputs.values()), args.max_bad_ratio)
    sizes = spec.codebook_sizes
    if args.method == "extra_layer":
        sizes = (*sizes, max(int(codes[:, -1].max()) + 1 for _, codes in results))
    with together():  # in place of the inputs too: all of them or none
        for output, (pids, codes) in zip(args.output_path, results, strict=True):
            write_batches(output, SCHEMA, codes_batches(pids, codes))
            SidSpec(sizes, collision=args.method).save(output.parent)
            manifest.output(output, len(pids))
        for output in args.output_path:
            manifest.write(output.parent, f"{output.stem}.collisions.manifest.json")
    print("\n".join(lines))
    print(f"collisions: {args.method}, codebooks {' x '.join(map(str, sizes))}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
