"""Turn a training checkpoint into a Hugging Face checkpoint directory.

    python convert_checkpoint_to_hf.py --base_model_dir models/base_itemic \\
        --checkpoint_dir output/stg1/step2000/global_step2000 \\
        --output_dir output/stg1/step2000/global_step2000/converted

Configuration, tokenizer, chat template and sid_spec.json come from the model that training began from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.flags import ArgumentParser
from onerec.folders import atomic_path, check_output, made_by
from onerec.run import Manifest, get_logger

log = get_logger("convert")


def main(argv: Sequence[str] | None = None) -> int | None:
    """Read the weights, whole or in shards, put them into the base model's shape, write the directory."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--base_model_dir", required=True, help="the --model_dir that the run began from")
    parser.add_argument("--checkpoint_dir", required=True, help="an output_dir, its step<N>, or step<N>/global_step<N>")
    parser.add_argument("--output_dir", help="folder of the converted model; without it <checkpoint_dir>/converted")
    args = parser.parse_args(argv)
    from onerec.model_folder import open_model_folder
    from pretrain.checkpoint import HF, find_checkpoint, lm_of_checkpoint
    from pretrain.model import quiet, write_hf

    base = Path(args.base_model_dir)
    open_model_folder(base)
    found = find_checkpoint(args.checkpoint_dir, None, args.checkpoint_dir)
    output = Path(args.output_dir) if args.output_dir else found / "converted"
    manifest = Manifest("convert_checkpoint_to_hf", args)
    # A training's own model gives way to another of its checkpoints.
    ours = made_by(output, manifest.stage) or (output.name == HF and made_by(output.parent, "pretrain"))
    check_output(output, ours)

    quiet()
    lm = lm_of_checkpoint(found, base)
    with atomic_path(output, ours) as folder:
        folder.mkdir(parents=True)
        write_hf(lm, base, folder)
        manifest.input(found)
        manifest.output(output)
        manifest.write(folder, whole_folder=True)
    log.info(f"wrote {output}")
    return None


if __name__ == "__main__":
    cli(main)()
