"""How good SIDs are: collisions, use of the codes, reconstruction, and whether near items have near SIDs.

    python evaluate_codes.py --pid2sid pid2sid.parquet --emb_path embeddings/ --model_path out --output_dir report
    python evaluate_codes.py --pid2sid pid2sid.parquet --output_dir report --caption pid2caption.parquet   # codes alone

Prints a table and writes codes_report.json and codes_report.html. Collision rate: 1 - distinct SIDs / items. Neighbour
agreement at depth d: how often one of an item's k nearest (cosine) has the same first d codes, beside two items at
random.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.catalog import read_pid2sid
from onerec.cli import cli
from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.flags import ArgumentParser
from onerec.parquet import Kind, iter_batches, open_parquet
from onerec.run import Manifest, write_json, write_text
from onerec.sid import SidSpec
from onerec.sparse import unit
from tokenizer.embeddings import embedding_dim, first_of_pids, iter_embeddings
from tokenizer.infer_res_kmeans import COLLIDE_RIGHT, MOSTLY
from tokenizer.quantizer import Quantizer, code_usage, load_quantizer

REPORT = "codes_report"
_CAPTIONS = ("dense_caption", "caption", "title", "text")
_LARGEST = 20  # buckets that the report names
_PIDS = 10  # items of such a bucket that it names
_BINS = 24
NEAREST = 10  # items that are looked at, of so many items, among so many
_QUERIES, _AMONG = 10_000, 200_000


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--pid2sid", type=Path, required=True, help="pid and codes, with sid_spec.json beside it")
    parser.add_argument("--emb_path", help="pid and embedding (for neighbours and reconstruction)")
    parser.add_argument("--model_path", type=Path, help="model.pt or its folder (for reconstruction; needs --emb_path)")
    parser.add_argument("--caption", type=Path, help="Parquet file with pid and a caption, to name the largest buckets")
    parser.add_argument("--output_dir", type=Path, required=True, help=f"folder for {REPORT}.json and {REPORT}.html")
    parser.add_max_bad_ratio()
    return parser.parse_args(argv)


def prefix_ids(codes: np.ndarray, depth: int) -> np.ndarray:
    """A number int64 [n] for every item, equal where the first ``depth`` codes are."""
    return np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].reshape(-1)


def collisions(pids: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Collision rate, how large the buckets are, and the largest of them."""
    sids, bucket, sizes = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    bucket = bucket.reshape(-1)
    order = np.lexsort((*sids.T[::-1], -sizes))[:_LARGEST]
    largest = [
        {"codes": sids[i].tolist(), "items": int(sizes[i]), "pids": np.sort(pids[bucket == i])[:_PIDS].tolist()}
        for i in order
        if sizes[i] > 1
    ]
    return {
        "items": len(pids),
        "distinct_sids": len(sids),
        "collision_rate": 1 - len(sids) / len(pids),
        "items_in_collision": float(sizes[sizes > 1].sum() / len(pids)),
        "bucket_sizes": {int(size): int(count) for size, count in enumerate(np.bincount(sizes)) if count},
        "largest_buckets": largest,
    }


def layers(codes: np.ndarray, spec: SidSpec) -> list[dict[str, Any]]:
    """How the codes of every layer are used, and how many prefixes end there."""
    found = []
    for layer, size in enumerate(spec.codebook_sizes):
        counts = np.bincount(codes[:, layer], minlength=size)
        used, entropy, perplexity = code_usage(counts)
        quantiles = np.quantile(counts, (0, 0.5, 1)).tolist()
        found.append(
            {
                "layer": layer + 1,
                "codebook_size": size,
                "codes_used": used,
                "utilisation": used / size,
                "entropy": entropy,
                "perplexity": perplexity,
                "items_a_code": dict(zip(("least", "median", "most"), quantiles, strict=True)),
                "distinct_prefixes": int(prefix_ids(codes, layer + 1).max()) + 1,
            }
        )
    return found


class Embedded:
    """What the embeddings say of the codes: errors over all items, and a sample of vectors for their neighbours."""

    def __init__(self, args: argparse.Namespace, pids: np.ndarray, codes: np.ndarray, model: Quantizer | None) -> None:
        self._args, self._model, self._codes = args, model, codes
        self._rows = pd.Index(pids)
        self._depths = min(codes.shape[1], model.n_layers) if model else 0
        self._errors, self._total = np.zeros(self._depths), 0.0
        self.without_code = self.with_both = 0
        self._rng = np.random.default_rng(0)
        self._sampled = np.zeros(len(pids), bool)
        self._sampled[self._rng.permutation(len(pids))[:_AMONG]] = True

    def read(self, manifest: Manifest) -> None:
        args = self._args
        dim = self._model.dim if self._model else embedding_dim(args.emb_path)
        vectors, rows, first = [], [], first_of_pids(args.emb_path)
        for pids, batch in iter_embeddings(args.emb_path, dim, manifest, first=first):
            row = self._rows.get_indexer(pids)
            known = row >= 0
            self.without_code += int((~known).sum())
            row, batch = row[known], batch[known]
            self.with_both += len(row)
            self._add_errors(batch, self._codes[row])
            chosen = self._sampled[row]
            vectors.append(unit(batch[chosen]))
            rows.append(row[chosen])
        manifest.check_bad_ratio(args.emb_path, sum(manifest.dropped.values()), len(first), args.max_bad_ratio)
        if not self.with_both:
            raise InputError(args.emb_path, "has no item of --pid2sid", "embeddings of the same catalogue")
        self.vectors, self.rows = np.concatenate(vectors), np.concatenate(rows)

    def _add_errors(self, vectors: np.ndarray, codes: np.ndarray) -> None:
        if not self._depths:
            return
        vectors = self._model.prepare(vectors)
        self._total += float((vectors**2).sum(dtype=np.float64))
        for depth in range(self._depths):
            left = vectors - self._model.decode(codes[:, : depth + 1])
            self._errors[depth] += float((left**2).sum(dtype=np.float64))

    def reconstruction(self) -> list[dict[str, float]]:
        """Mean squared and relative error after every layer that the model has."""
        return [
            {"depth": depth + 1, "mse": error / self.with_both, "relative": error / self._total}
            for depth, error in enumerate(self._errors.tolist())
        ]

    def neighbours(self) -> dict[str, Any]:
        """How often near items share a prefix, by its depth, and how often any two do."""
        import faiss

        codes, n = self._codes[self.rows], len(self.rows)
        k = min(NEAREST, n - 1)
        if k < 1:
            raise InputError(self._args.emb_path, "has one item only", "at least two, to have a neighbour")
        queries = np.sort(self._rng.permutation(n)[:_QUERIES])
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors)
        found = index.search(self.vectors[queries], k + 1)[1]
        # The item itself is left out wherever it stands; where doubles push it out, the last one goes.
        others = found != queries[:, None]
        others[others.all(1), k] = False
        near = found[others].reshape(len(queries), k)
        agreement, chance = [], []
        for depth in range(1, codes.shape[1] + 1):
            prefix = prefix_ids(codes, depth)
            agreement.append(float((prefix[near] == prefix[queries][:, None]).mean()))
            sizes = np.bincount(prefix).astype(np.float64)
            chance.append(float((sizes * (sizes - 1)).sum() / (n * (n - 1))))
        return {"k": k, "queries": len(queries), "among": n, "agreement": agreement, "by_chance": chance}


def add_captions(path: Path, buckets: list[dict[str, Any]]) -> None:
    names = open_parquet(path, ["pid"]).schema_arrow.names
    column = next((name for name in _CAPTIONS if name in names), None)
    if column is None:
        raise InputError(path, f"has no column {' or '.join(_CAPTIONS)}", f"it has {', '.join(names)}")
    wanted = {pid for bucket in buckets for pid in bucket["pids"]}
    texts = {}
    for batch in iter_batches(path, {"pid": Kind.INT, column: Kind.SHOWN}):
        pairs = zip(batch["pid"].to_pylist(), batch[column].to_pylist(), strict=True)
        texts |= {pid: text for pid, text in pairs if pid in wanted}
    for bucket in buckets:
        bucket["captions"] = [texts.get(pid) for pid in bucket["pids"]]


HEADINGS = (
    "layer",
    "codes used",
    "bits",
    "perplexity",
    "items a code",
    "prefixes",
    "error",
    "relative",
    "neighbours agree",
    "by chance",
)


def depth_rows(report: dict[str, Any]) -> list[list[str]]:
    """The table by depth: layer, use, prefixes, error, agreement; a dash for what was not measured."""
    errors = {row["depth"]: row for row in report.get("reconstruction", [])}
    near = report.get("neighbours")
    rows = []
    for i, layer in enumerate(report["layers"]):
        error = errors.get(layer["layer"])
        rows.append(
            [
                str(layer["layer"]),
                f"{layer['codes_used']:,}/{layer['codebook_size']:,}",
                f"{layer['entropy']:.2f}",
                f"{layer['perplexity']:,.1f}",
                "{least:,.0f} / {median:,.0f} / {most:,.0f}".format(**layer["items_a_code"]),
                f"{layer['distinct_prefixes']:,}",
                *([f"{error['mse']:.6f}", f"{error['relative']:.4f}"] if error else "––"),
                *([f"{near['agreement'][i]:.4f}", f"{near['by_chance'][i]:.4f}"] if near else "––"),
            ]
        )
    return rows


def write_page(path: Path, report: dict[str, Any], codes: np.ndarray, headline: str) -> None:
    from onerec.pages import Bar, bars, charts, heading, histogram, html_page, table

    sizes = report["bucket_sizes"]
    top = max(sizes)
    bounds = np.unique(np.geomspace(1, top + 1, min(top, _BINS) + 1).round().astype(int))
    counts = [sum(n for size, n in sizes.items() if low <= size < high) for low, high in itertools.pairwise(bounds)]
    found = [{"heading": "SIDs by how many items they name", "svg": histogram(bounds.tolist(), counts)}]
    for layer, size in enumerate(report["codebook_sizes"]):
        used = np.bincount(codes[:, layer], minlength=size)
        n, edges = np.histogram(used, bins=min(_BINS, int(used.max()) + 1))
        chart = histogram(edges.tolist(), n.tolist())
        found.append({"heading": f"layer {layer + 1}: codes by their items", "svg": chart})
    blocks = [table(HEADINGS, depth_rows(report))]
    agreement = []
    if near := report.get("neighbours"):
        shares = []
        for depth, (agrees, chance) in enumerate(zip(near["agreement"], near["by_chance"], strict=True), 1):
            shares += [Bar(f"{depth} codes", "stage", agrees), Bar("two at random", "baseline", chance)]
        how_often = f"How often one of the {near['k']} nearest items shares a prefix"
        agreement = charts(how_often, [{"heading": "cosine", "bars": bars(shares)}])
    largest = [
        [
            " ".join(map(str, bucket["codes"])),
            f"{bucket['items']:,}",
            "; ".join(str(caption)[:60] for caption in bucket.get("captions", bucket["pids"])[:3]),
        ]
        for bucket in report["largest_buckets"]
    ]
    if largest:
        blocks += [heading("Largest buckets"), table(("codes", "items", "some of them"), largest)]
    blocks += [*charts("Items a SID, items a code", found), *agreement]
    write_text(path, html_page("SIDs", headline, blocks))


def checked_model(args: argparse.Namespace, spec: SidSpec) -> Quantizer | None:
    """The quantiser of --model_path, None without; raises `InputError` where it is not that of the SIDs."""
    if not args.model_path:
        return None
    if not args.emb_path:
        raise InputError("--model_path", "says nothing without embeddings", "add --emb_path")
    model = load_quantizer(args.model_path)
    both = min(model.n_layers, spec.n_layers)
    if model.codebook_sizes[:both] != spec.codebook_sizes[:both]:
        right = f"those of {args.pid2sid}: {spec.codebook_sizes}"
        raise InputError(args.model_path, f"has codebooks {model.codebook_sizes}", right)
    return model


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    spec = SidSpec.load(args.pid2sid.parent / SID_SPEC)
    pids, codes = read_pid2sid(args.pid2sid, spec)
    model = checked_model(args, spec)
    manifest = Manifest("evaluate_codes", args)
    manifest.input(args.pid2sid, len(pids))
    report: dict[str, Any] = {"codebook_sizes": list(spec.codebook_sizes), "collision_policy": spec.collision}
    report |= collisions(pids, codes)
    report["layers"] = layers(codes, spec)
    if args.emb_path:
        embedded = Embedded(args, pids, codes, model)
        embedded.read(manifest)
        report["items_without_embedding"] = len(pids) - embedded.with_both
        report["embeddings_without_code"] = embedded.without_code
        if model:
            report["reconstruction"] = embedded.reconstruction()
        report["neighbours"] = embedded.neighbours()
    if args.caption:
        add_captions(args.caption, report["largest_buckets"])
    headline = (
        f"{report['items']:,} items, {report['distinct_sids']:,} distinct SIDs, "
        f"collision rate {report['collision_rate']:.2%} (policy {spec.collision}), "
        f"{report['items_in_collision']:.2%} of the items share theirs, largest bucket {max(report['bucket_sizes'])}"
    )
    print(headline)
    rows = [list(HEADINGS), *depth_rows(report)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    data, page = (args.output_dir / f"{REPORT}.{suffix}" for suffix in ("json", "html"))
    write_json(data, report)
    write_page(page, report, codes, headline)
    manifest.output(data)
    manifest.output(page)
    if report["collision_rate"] > MOSTLY:
        what = f"{report['items']:,} items have {report['distinct_sids']:,} SIDs: most collide"
        manifest.warn(what, COLLIDE_RIGHT)
    manifest.write(args.output_dir, f"{REPORT}.manifest.json")
    missing = report.get("items_without_embedding", 0)
    print(f"report: {page}; {f'{missing:,} items have no embedding; ' if missing else ''}{manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
