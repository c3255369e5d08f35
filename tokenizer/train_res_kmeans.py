"""Train residual k-means over item embeddings: the codebooks that make an item a SID.

    python train_res_kmeans.py --data_path item_embedding.parquet --model_path out --n_layers 3 --codebook_size 8192
    python train_res_kmeans.py --data_path a.parquet b.parquet --model_path out --codebook_size 32 --dim 64
    torchrun --nproc_per_node 8 train_res_kmeans.py --data_path embeddings/ --model_path out   # eight GPUs

Reads Parquet files or folders (columns pid, embedding), of which only a sample stays in memory; writes model.pt,
sid_spec.json, manifest.json and a TensorBoard log into --model_path.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.distributed import process_group
from onerec.errors import InputError
from onerec.flags import CODES, COUNT, COUNT_OR_ALL, LAYERS, SEED, WIDTH, ArgumentParser
from onerec.folders import together
from onerec.run import Manifest, get_logger, processes
from tokenizer.embeddings import sample_vectors
from tokenizer.kmeans import KmeansConfig
from tokenizer.quantizer import MODEL_FILE, LayerReport, Quantizer, chosen_device
from tokenizer.res_kmeans import ResKmeans

POINTS_PER_CODE = 256  # what faiss takes too; more does not lower the error by much


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add_arguments(parser)
    add = parser.add_argument
    add("--niter", type=COUNT, default=20, help="k-means iterations a layer")
    add("--nredo", type=COUNT, default=1, help="k-means restarts a layer; the best is kept")
    seeds = "first centroids: random points, or spread ones"
    add("--init", choices=("random", "kmeans++"), default="random", help=seeds)
    add("--balanced", action="store_true", help="use the codes of a layer evenly (torch backend)")
    backend = "auto: torch where there is CUDA, under torchrun and with --balanced, faiss otherwise"
    add("--backend", choices=("auto", "faiss", "torch"), default="auto", help=backend)
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the torch backend")
    return parser.parse_args(argv)


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that the training of every quantiser has."""
    add = parser.add_argument
    add("--data_path", nargs="+", required=True, help="Parquet files or folders with pid and embedding")
    add("--model_path", type=Path, required=True, help="folder for model.pt (or the path of a .pt file)")
    add("--n_layers", type=LAYERS, default=3, help="codebook layers")
    add("--codebook_size", type=CODES, default=8192, help="codes a layer")
    add("--dim", type=WIDTH, default=4096, help="dimensions used; a longer embedding is cut (Matryoshka)")
    add("--normalize", action="store_true", help="scale embeddings to length one, in encoding too")
    sample = f"train on a uniform sample of rows (-1: {POINTS_PER_CODE} a code)"
    add("--max_points", type=COUNT_OR_ALL, default=-1, help=sample)
    add("--seed", type=SEED, default=0, help="seed of the sample and of training")
    parser.add_max_bad_ratio()


def training_points(args: argparse.Namespace, manifest: Manifest, share: tuple[int, int] = (0, 1)):
    """The sample to train on, float32 [n, dim]: at most --max_points rows, of which this process has its ``share``."""
    limit = args.max_points if args.max_points > 0 else POINTS_PER_CODE * args.codebook_size
    sample = sample_vectors(args.data_path, args.dim, limit, args.seed, manifest, args.max_bad_ratio, share)
    vectors, points, total = sample
    manifest.extra["points"] = points
    whose = f", {len(vectors):,} of them here" if share[1] > 1 else ""
    get_logger("tokenizer").info(
        f"training on {points:,} of {total:,} points (--max_points {limit:,}){whose}, {args.dim} dimensions"
    )
    if points < args.codebook_size:
        what = f"has {points} points for {args.codebook_size} codes"
        raise InputError(args.data_path[0], what, "fewer codes or more items")
    return vectors


def write_model(model: Quantizer, args: argparse.Namespace, reports: Sequence[LayerReport], manifest: Manifest) -> Path:
    """Write model.pt, sid_spec.json, the TensorBoard log and the manifest; returns the path of model.pt."""
    file = args.model_path if args.model_path.suffix == ".pt" else args.model_path / MODEL_FILE
    layers = [dict(vars(report)) for report in reports]
    for layer in layers:
        del layer["objective"]
    manifest.extra["layers"] = layers
    manifest.output(file)
    with together():
        model.save(file)
        model.spec.save(file.parent)
        manifest.write(file.parent)
    log_layers(file.parent, reports)
    return file


def log_layers(folder: Path, reports: Sequence[LayerReport]) -> None:
    """Convergence and quality of every layer, for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tb_logs")) as writer:
        for report in reports:
            for step, loss in enumerate(report.objective):
                writer.add_scalar(f"layer{report.layer}/loss", loss, step)
            for name in ("mse", "relative", "codes_used", "entropy", "perplexity"):
                writer.add_scalar(f"quality/{name}", getattr(report, name), report.layer)


def choose_backend(args: argparse.Namespace) -> tuple[str, str]:
    """(backend, device) of the arguments and the machine; raises `InputError` where they do not go together."""
    device, backend, several = chosen_device(args.device), args.backend, processes()[1] > 1
    if backend == "auto":
        backend = "torch" if device != "cpu" or several or args.balanced else "faiss"
    if backend == "faiss" and args.balanced:
        raise InputError("--balanced", "faiss has no balanced k-means", "--backend torch")
    if backend == "faiss" and several:
        raise InputError("--backend", "faiss trains in one process", "--backend torch under torchrun")
    return backend, device if backend == "torch" else "cpu"


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    args = parse_args(argv)
    backend, device = choose_backend(args)
    if device != "cpu":
        torch.cuda.set_device(device)
    if processes()[0]:
        get_logger("tokenizer").setLevel("WARNING")
    with process_group("nccl" if device != "cpu" else "gloo"):
        train(args, backend, device)


def train(args: argparse.Namespace, backend: str, device: str) -> None:
    """Draw the sample, fit the codebooks on it with all processes, and write them on the first one."""
    log, manifest = get_logger("tokenizer"), Manifest("train_res_kmeans", args)
    vectors = training_points(args, manifest, processes())
    manifest.extra |= {"backend": backend, "device": device, "processes": processes()[1]}
    reports: list[LayerReport] = []
    seconds, began = [], time.perf_counter()

    def on_layer(report: LayerReport) -> None:
        reports.append(report)
        seconds.append(time.perf_counter() - began - sum(seconds))
        log.info(f"{report.line(args.codebook_size)}, {seconds[-1]:.1f} s")

    config = KmeansConfig(args.niter, args.nredo, args.init, args.balanced, args.seed)
    how = {"backend": backend, "normalize": args.normalize, "device": device, "on_layer": on_layer}
    model = ResKmeans.fit(vectors, args.n_layers, args.codebook_size, config, overwrite=True, **how)
    if processes()[0] == 0:
        manifest.extra["layer_seconds"] = [round(value, 3) for value in seconds]
        file = write_model(model, args, reports, manifest)
        print(f"residual k-means: {args.n_layers} x {args.codebook_size} codes in {file}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
