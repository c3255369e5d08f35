"""Codebook size by measure: candidates on the items' own embeddings, the smallest that keeps them apart.

    python choose_sizes.py --data_path item_embedding.parquet --output_path sizes.json --dim 128 --balanced

The codes of a layer double until at most --max_collisions of the items (1 - distinct SIDs / items) have to share a SID
or move, or twice the codes keep no more of them apart. Prints a row a candidate, and writes the choice and the rows as
JSON. Each candidate is trained as train_res_kmeans.py would train it. Two layers were better than three where both were
measured (experiments/2026-11-26-beauty-ablations).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import LAYERS, SEED, SHARE_BELOW_1, WIDTH, ArgumentParser
from onerec.run import Manifest, write_json
from tokenizer.embeddings import iter_embeddings, sample_vectors
from tokenizer.kmeans import KmeansConfig
from tokenizer.quantizer import LayerReport, code_usage, sid_keys
from tokenizer.res_kmeans import ResKmeans
from tokenizer.train_res_kmeans import POINTS_PER_CODE

LARGEST = 8192  # codes of a layer in the published release
ROOM = 4  # SIDs an item, at least: with fewer, codes that are used unevenly cannot keep the items apart
LEAST_GAIN = 0.005  # of twice the codes: where many items have one embedding, none tell them apart
HEADINGS = ("layers", "codes", "items", "SIDs", "collide", "codes used", "perplexity a layer")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data_path", nargs="+", required=True, help="Parquet files or folders with pid and embedding")
    add("--output_path", type=Path, required=True, help="JSON file for the choice")
    add("--n_layers", type=LAYERS, default=2, help="codebook layers")
    add("--dim", type=WIDTH, default=4096, help="dimensions used; a longer embedding is cut (Matryoshka)")
    add("--balanced", action="store_true", help="use the codes of a layer evenly, as in training")
    least = "share of the items that may have another's SID"
    add("--max_collisions", type=SHARE_BELOW_1, default=0.1, help=least)
    add("--seed", type=SEED, default=0, help="seed of the sample and of training")
    parser.add_max_bad_ratio()
    return parser.parse_args(argv)


def candidates(items: int, layers: int) -> Iterator[int]:
    """Codes of a layer, the fewest first: powers of two, and no more than ``items``."""
    largest, codes = min(LARGEST, 1 << (items.bit_length() - 1)), 2
    while codes**layers < ROOM * items and codes < largest:
        codes *= 2
    while codes <= largest:
        yield codes
        codes *= 2


def measure(args: argparse.Namespace, codes: int) -> dict[str, Any]:
    """Train a candidate and encode every item: its row of the table."""
    layers = args.n_layers
    limit = POINTS_PER_CODE * codes
    sample = sample_vectors(args.data_path, args.dim, limit, args.seed, Manifest("sample"), args.max_bad_ratio)
    config, reports = KmeansConfig(balanced=args.balanced, seed=args.seed), list[LayerReport]()
    backend = "torch" if args.balanced else "faiss"
    how = {"backend": backend, "overwrite": True, "on_layer": reports.append}
    model = ResKmeans.fit(sample[0], layers, codes, config, **how)
    items, sids, used = 0, 0, np.zeros((layers, codes), np.int64)
    for path in args.data_path:  # the tables are of different pid spaces
        keys = []
        for _, batch in iter_embeddings(path, args.dim, Manifest("encode")):
            found = model.encode(batch, layers)
            keys.append(sid_keys(found, model.spec))
            for layer in range(layers):
                used[layer] += np.bincount(found[:, layer], minlength=codes)
        items, sids = items + sum(map(len, keys)), sids + len(np.unique(np.concatenate(keys)))
    usage = [code_usage(counts) for counts in used]
    return {
        "n_layers": layers,
        "codebook_size": codes,
        "items": items,
        "distinct_sids": sids,
        "collision_rate": 1 - sids / items,
        "codes_used": [used for used, _, _ in usage],
        "perplexity": [round(perplexity, 1) for _, _, perplexity in usage],
    }


def gain(before: dict[str, Any], after: dict[str, Any]) -> float:
    """By how much a candidate's collision rate is below that of the one before."""
    return before["collision_rate"] - after["collision_rate"]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the printed table."""
    return [
        str(row["n_layers"]),
        f"{row['codebook_size']:,}",
        f"{row['items']:,}",
        f"{row['distinct_sids']:,}",
        f"{row['collision_rate']:.2%}",
        ", ".join(f"{used:,}" for used in row["codes_used"]),
        ", ".join(f"{value:,.1f}" for value in row["perplexity"]),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    manifest = Manifest("choose_sizes", args)
    items = sum(len(pids) for path in args.data_path for pids, _ in iter_embeddings(path, args.dim, manifest))
    bad = sum(manifest.dropped.values())
    manifest.check_bad_ratio(args.data_path[0], bad, items + bad, args.max_bad_ratio)
    print("  ".join(HEADINGS))
    rows: list[dict[str, Any]] = []
    for codes in candidates(items, args.n_layers):
        rows.append(measure(args, codes))
        print("  ".join(cells(rows[-1])), flush=True)
        if rows[-1]["collision_rate"] <= args.max_collisions or (rows[1:] and gain(*rows[-2:]) < LEAST_GAIN):
            break
    chosen = min(rows, key=lambda row: row["collision_rate"])
    enough = chosen["collision_rate"] <= args.max_collisions
    if not enough:
        right = "embeddings that tell the items apart, or --max_collisions that allows it"
        manifest.warn(f"no size keeps more than {1 - chosen['collision_rate']:.1%} of the items apart", right)
    choice = {name: chosen[name] for name in ("n_layers", "codebook_size")}
    write_json(args.output_path, choice | {"tried": rows, "manifest": manifest.as_dict()})
    why = f"the smallest with at most {args.max_collisions:.0%}" if enough else "the fewest of all"
    share = f"{chosen['collision_rate']:.2%} of {items:,} items collide, {why}"
    print(f"sizes: {chosen['n_layers']} x {chosen['codebook_size']:,} codes ({share}); {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
