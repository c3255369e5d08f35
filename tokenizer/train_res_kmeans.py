"""Train residual k-means over item embeddings: the codebooks that make an item a SID.

    python train_res_kmeans.py --data_path item_embedding.parquet --model_path out --n_layers 3 --codebook_size 8192 --dim 4096
    python train_res_kmeans.py --data_path a.parquet b.parquet --model_path out --codebook_size 32 --dim 64   # the toy world

Reads Parquet files or folders (columns pid, embedding); writes model.pt, sid_spec.json, manifest.json and a TensorBoard
log into --model_path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onerec.errors import InputError, cli
from onerec.parquet import count_rows, list_parquet
from onerec.run import Manifest, get_logger
from tokenizer.embeddings import iter_embeddings
from tokenizer.res_kmeans import MODEL_FILE, LayerReport, ResKmeans


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data_path", nargs="+", required=True, help="Parquet files or folders with pid and embedding"
    )
    parser.add_argument(
        "--model_path", type=Path, required=True, help="folder for model.pt (or the path of a .pt file)"
    )
    parser.add_argument("--n_layers", type=int, default=3, help="codebook layers")
    parser.add_argument("--codebook_size", type=int, default=8192, help="codes a layer")
    parser.add_argument(
        "--dim", type=int, default=4096, help="dimensions used; a longer embedding is cut (Matryoshka)"
    )
    parser.add_argument("--niter", type=int, default=20, help="k-means iterations a layer")
    parser.add_argument("--nredo", type=int, default=1, help="k-means restarts a layer; the best is kept")
    parser.add_argument(
        "--max_points", type=int, default=-1, help="train on a uniform sample of rows (-1: 256 a code)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample and of k-means")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    return parser.parse_args(argv)


def sample_vectors(args: argparse.Namespace, manifest: Manifest) -> np.ndarray:
    """A uniform sample of at most ``--max_points`` rows, float32 [n, dim], without loading the rest at once."""
    total = sum(count_rows(file) for path in args.data_path for file in list_parquet(path))
    limit = args.max_points if args.max_points > 0 else 256 * args.codebook_size
    chosen = np.ones(total, dtype=bool)
    if total > limit:
        chosen[:] = False
        chosen[np.random.default_rng(args.seed).choice(total, limit, replace=False)] = True
    parts, position = [], 0
    for path in args.data_path:
        for _, vectors in iter_embeddings(path, args.dim, manifest):
            # Bad rows are dropped before this point, so the mask runs over good rows; the sample stays uniform.
            parts.append(vectors[chosen[position : position + len(vectors)]])
            position += len(vectors)
    manifest.check_bad_ratio(args.data_path[0], sum(manifest.dropped.values()), total, args.max_bad_ratio)
    sample = np.concatenate(parts)
    manifest.extra["points"] = len(sample)
    return sample


def log_layers(folder: Path, reports: Sequence[LayerReport]) -> None:
    """Convergence and quality of every layer, for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tb_logs")) as writer:
        for report in reports:
            for step, loss in enumerate(report.objective):
                writer.add_scalar(f"layer{report.layer}/kmeans_loss", loss, step)
            for name in ("mse", "relative", "codes_used", "entropy", "perplexity"):
                writer.add_scalar(f"quality/{name}", getattr(report, name), report.layer)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    log = get_logger("train_res_kmeans")
    for name in ("n_layers", "codebook_size", "dim", "niter", "nredo"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}", f"{getattr(args, name)} is not a positive number", "at least 1")
    file = args.model_path if args.model_path.suffix == ".pt" else args.model_path / MODEL_FILE
    manifest = Manifest("train_res_kmeans", args)
    vectors = sample_vectors(args, manifest)
    log.info(
        "training on %s of %s points, %s dimensions",
        f"{len(vectors):,}",
        f"{sum(manifest.inputs.values()):,}",
        args.dim,
    )
    if len(vectors) < args.codebook_size:
        raise InputError(
            args.data_path[0],
            f"has {len(vectors)} points for {args.codebook_size} codes",
            "fewer codes or more items",
        )
    reports: list[LayerReport] = []

    def on_layer(report: LayerReport) -> None:
        reports.append(report)
        log.info(report.line(args.codebook_size))

    model = ResKmeans.fit(
        vectors, args.n_layers, args.codebook_size, args.niter, args.nredo, args.seed, on_layer
    )
    model.save(file)
    model.spec.save(file.parent)
    log_layers(file.parent, reports)
    manifest.extra["layers"] = [
        {key: value for key, value in vars(report).items() if key != "objective"} for report in reports
    ]
    manifest.output(file)
    manifest.write(file.parent)
    print(
        f"residual k-means: {args.n_layers} x {args.codebook_size} codes in {file}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
