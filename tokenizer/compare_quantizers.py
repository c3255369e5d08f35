"""One catalogue, every quantiser: the table of reconstruction, collisions and use of the codes.

    python compare_quantizers.py --emb_path item_embedding.parquet --output_dir compare --codebook_size 32 --dim 64

Trains, encodes and evaluates each with its defaults (residual k-means also with k-means++, balanced, and by a beam of
8), prints the table and writes it as compare.md, beside a folder a quantiser. What it costs downstream:
bash scripts/quickstart.sh --no-rl --run_dir runs/opq --set tokenizer.QUANTIZER=opq.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.files import PID2SID
from onerec.flags import CODES, LAYERS, SEED, WIDTH, ArgumentParser
from onerec.run import read_json, write_text
from tokenizer.evaluate_codes import REPORT
from tokenizer.evaluate_codes import main as evaluate
from tokenizer.infer_res_kmeans import main as infer
from tokenizer.train_baselines import main as train_baseline
from tokenizer.train_res_kmeans import main as train_res_kmeans

# name: (how it is trained, flags of training, flags of encoding)
QUANTIZERS = {
    "residual k-means": (train_res_kmeans, [], []),
    "residual k-means, k-means++": (train_res_kmeans, ["--init", "kmeans++"], []),
    "residual k-means, balanced": (train_res_kmeans, ["--balanced"], []),
    "residual k-means, beam 8": (train_res_kmeans, [], ["--beam", "8"]),
    "RQ-VAE": (train_baseline, ["--kind", "rq_vae"], []),
    "OPQ": (train_baseline, ["--kind", "opq"], []),
    "PQ": (train_baseline, ["--kind", "pq"], []),
}
HEADINGS = (
    "quantiser",
    "relative error",
    "collision rate",
    "largest bucket",
    "prefixes of 1 / 2 codes",
    "perplexity a layer",
    "neighbours agree at 1 / 2 codes",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--emb_path", required=True, help="Parquet file or folder with pid and embedding")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for compare.md and a folder a quantiser")
    parser.add_argument("--n_layers", type=LAYERS, default=3, help="codebook layers")
    parser.add_argument("--codebook_size", type=CODES, default=256, help="codes of a layer")
    parser.add_argument("--dim", type=WIDTH, default=4096, help="dimensions used; a longer embedding is cut")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of every training")
    names = {"choices": list(QUANTIZERS), "metavar": "NAME", "help": f"of {', '.join(QUANTIZERS)} (default: all)"}
    parser.add_argument("--quantizers", nargs="*", default=list(QUANTIZERS), **names)
    return parser.parse_args(argv)


def row(name: str, args: argparse.Namespace) -> list[str]:
    """Train, encode and evaluate one quantiser; its row of the table."""
    train, flags, encoding = QUANTIZERS[name]
    folder = args.output_dir / "".join(c if c.isalnum() else "_" for c in name.lower())
    sizes = [f"--{key}={getattr(args, key)}" for key in ("n_layers", "codebook_size", "dim", "seed")]
    sids, items = ["--pid2sid", str(folder / PID2SID)], ["--emb_path", args.emb_path]
    with contextlib.redirect_stdout(io.StringIO()):
        train(["--data_path", args.emb_path, "--model_path", str(folder), *sizes, *flags])
        infer(["--model_path", str(folder), *items, "--output_path", str(folder), *encoding])
        evaluate([*sids, *items, "--model_path", str(folder), "--output_dir", str(folder)])
    report = read_json(folder / f"{REPORT}.json")
    layers, near = report["layers"], report["neighbours"]["agreement"]
    return [
        name,
        f"{report['reconstruction'][-1]['relative']:.4f}",
        f"{report['collision_rate']:.2%}",
        str(max(map(int, report["bucket_sizes"]))),
        " / ".join(f"{layer['distinct_prefixes']:,}" for layer in layers[:2]),
        " / ".join(f"{layer['perplexity']:.1f}" for layer in layers),
        " / ".join(f"{value:.3f}" for value in near[:2]),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    print("\n".join(lines))
    for name in args.quantizers:
        lines.append("| " + " | ".join(row(name, args)) + " |")
        print(lines[-1], flush=True)
    write_text(args.output_dir / "compare.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    cli(main)()
