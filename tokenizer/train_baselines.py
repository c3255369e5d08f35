"""Train a baseline quantiser to compare residual k-means with: PQ, OPQ (faiss), or RQ-VAE (torch).

    python train_baselines.py --kind opq --data_path item_embedding.parquet --model_path opq --codebook_size 32 --dim 64
    python train_baselines.py --kind rq_vae --data_path item_embedding.parquet --model_path rq_vae --epochs 300

Flags and outputs are those of train_res_kmeans.py; what reads its model.pt takes this one too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE, ArgumentParser
from onerec.run import Manifest, get_logger
from tokenizer.quantizer import KINDS, layer_reports, quantizer_class
from tokenizer.train_res_kmeans import add_arguments, training_points, write_model


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--kind", choices=[kind for kind in KINDS if kind != "res_kmeans"], required=True, help="which")
    add_arguments(parser)
    parser.add_argument("--niter", type=COUNT, default=25, help="pq, opq: iterations")
    parser.add_argument("--epochs", type=COUNT, default=200, help="rq_vae: passes over the items")
    parser.add_argument("--lr", type=POSITIVE, default=1e-3, help="rq_vae: learning rate")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of rq_vae")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    manifest = Manifest("train_baselines", args)
    vectors = training_points(args, manifest)
    model, losses = quantizer_class(args.kind).train(vectors, args)
    reports = layer_reports(model, vectors, losses)
    for report in reports:
        get_logger("tokenizer").info(report.line(args.codebook_size))
    file = write_model(model, args, reports, manifest)
    print(f"{args.kind}: {args.n_layers} x {args.codebook_size} codes in {file}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
