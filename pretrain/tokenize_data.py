"""Tokenize a training's data before GPUs are rented: no GPU, no torch, all cores.

    python tokenize_data.py --model_dir models/Qwen3-1.7B_itemic --token_dir output/stg2/tokens \\
        --dataset_config examples/dataset_config/pretrain.json

``train.py --token_dir`` with the same model, config and data maps what this leaves and begins at once. The folder is
named by content (shards, tokenizer, settings), never by paths or times. A run that is stopped keeps the shards that it
has done. --runner ray: a task a shard. (A tokenize.py in this folder would hide Python's own from its neighbours.)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import COUNT, RAY, ArgumentParser, pattern
from onerec.model_folder import open_model_folder
from onerec.run import Manifest, get_logger
from pretrain.dataset import load_samples
from pretrain.dataset_config import load_config

log = get_logger("tokenize")


def main(argv: Sequence[str] | None = None) -> None:
    """Read, tokenize, write the folder, say what is in it."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_dir", type=Path, required=True, help="the --model_dir of the training")
    add("--dataset_config", type=Path, required=True, help="its dataset config")
    add("--token_dir", type=Path, required=True, help="its --token_dir")
    add("--sources", type=pattern, nargs="+", help="replaces the config's, as in the training")
    add("--max_length", type=COUNT, help="replaces the config's max_length, as in the training")
    add("--num_workers", type=COUNT, help="processes, or tasks at a time; all cores by default")
    parser.add_runner()
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    given = {"sources": tuple(args.sources) if args.sources else None, "max_length": args.max_length}
    workers = args.num_workers or (0 if args.runner == RAY else len(os.sched_getaffinity(0)))
    config = load_config(args.dataset_config, **given, num_workers=workers)
    spec = open_model_folder(args.model_dir).spec
    manifest, began = Manifest("tokenize_data", args), time.monotonic()
    data = (config, args.dataset_config, args.model_dir, spec, manifest, args.max_bad_ratio)
    samples = load_samples(*data, token_dir=args.token_dir, runner=args.runner)
    tokens, seconds = len(samples.ids), time.monotonic() - began
    log.info(
        f"{args.token_dir}: {len(samples):,} samples, {tokens:,} tokens, {samples.learnt:,} learnt, in {seconds:.0f} s "
        f"({tokens / max(seconds, 1e-9):,.0f} a second); {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
