"""Train a baseline quantiser to compare residual k-means with: PQ, OPQ (faiss), or RQ-VAE (torch).

    python train_baselines.py --kind opq --data_path item_embedding.parquet --model_path opq --n_layers 3 --codebook_size 32 --dim 64
    python train_baselines.py --kind rq_vae --data_path item_embedding.parquet --model_path rq_vae --codebook_size 32 --dim 64 --epochs 300

Flags and outputs are those of train_res_kmeans.py; infer_res_kmeans.py and evaluate_codes.py take its model.pt as they take any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, NOT_NEGATIVE, POSITIVE, WIDTH, ArgumentParser
from onerec.run import Manifest, get_logger
from tokenizer.product import ProductQuantizer
from tokenizer.quantizer import layer_reports
from tokenizer.rq_vae import RqVae, RqVaeConfig
from tokenizer.train_res_kmeans import add_arguments, training_points, write_model


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--kind", choices=("pq", "opq", "rq_vae"), required=True)
    add_arguments(parser)
    parser.add_argument("--niter", type=COUNT, default=25, help="pq, opq: iterations")
    group = parser.add_argument_group("rq_vae")
    default = RqVaeConfig()
    group.add_argument(
        "--hidden", type=WIDTH, nargs="+", default=list(default.hidden), help="widths of the encoder's layers"
    )
    group.add_argument("--latent_dim", type=WIDTH, default=default.latent_dim)
    group.add_argument("--beta", type=NOT_NEGATIVE, default=default.beta, help="weight of the commitment to the codes")
    group.add_argument("--epochs", type=COUNT, default=default.epochs)
    group.add_argument("--batch_size", type=COUNT, default=default.batch_size)
    group.add_argument("--lr", type=POSITIVE, default=default.lr)
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser.parse_args(argv)


def fit_rq_vae(args: argparse.Namespace, vectors) -> tuple[RqVae, list[float]]:
    """(model, loss by epoch)."""
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "cuda is not available on this machine", "cpu or auto")
    device = "cuda" if args.device != "cpu" and torch.cuda.is_available() else "cpu"
    config = RqVaeConfig(
        tuple(args.hidden), args.latent_dim, args.beta, args.epochs, args.batch_size, args.lr, args.seed
    )
    losses: list[float] = []

    def on_epoch(loss: float) -> None:
        losses.append(loss)
        if len(losses) % max(1, args.epochs // 10) == 0:
            get_logger("tokenizer").info(f"epoch {len(losses)}/{args.epochs}: loss {loss:.6f}")

    try:
        model = RqVae.fit(vectors, args.n_layers, args.codebook_size, config, args.normalize, device, on_epoch)
    except ValueError as error:
        raise InputError(args.data_path[0], str(error), "another --lr") from None
    return model.to("cpu"), losses


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.kind != "rq_vae" and args.codebook_size & (args.codebook_size - 1):
        raise InputError("--codebook_size", f"{args.codebook_size} is not a power of two, which faiss's {args.kind} needs", "a power of two")  # fmt: skip
    log, manifest = get_logger("tokenizer"), Manifest("train_baselines", args)
    vectors = training_points(args, manifest)
    losses: list[float] = []
    if args.kind == "rq_vae":
        model, losses = fit_rq_vae(args, vectors)
    else:
        model = ProductQuantizer.fit(
            vectors, args.n_layers, args.codebook_size, args.kind == "opq", args.niter, args.seed, args.normalize
        )
    reports = layer_reports(model, vectors, losses)
    for report in reports:
        log.info(report.line(args.codebook_size))
    file = write_model(model, args, reports, manifest)
    print(f"{args.kind}: {args.n_layers} x {args.codebook_size} codes in {file}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
