"""Mix record files into shuffled training shards: prepare_pretrain.sh and prepare_sft.sh call this.

    python prepare_mix.py --config configs/sft.json --base_dir . --output_dir output/split_data_sft --seed 42

The config names the sources: {"sources": [{"name", "path" (file, folder or pattern, relative to --base_dir), "weight"
(share of the rows) and "max_rows"}], "rows_per_file"}. Writes part-00000-of-000NN.parquet and file_list.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.mix import mix, read_config, write_shards
from onerec.errors import cli
from onerec.run import Manifest


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="JSON config with the sources")
    parser.add_argument(
        "--base_dir", type=Path, default=Path(), help="folder that the sources' paths start from"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the shards")
    parser.add_argument("--seed", type=int, default=42, help="seed of the samples and of the shuffle")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    args = parser.parse_args(argv)
    manifest = Manifest("prepare_mix", args)
    sources, rows_per_file = read_config(args.config, args.base_dir)
    table = mix(sources, args.seed, manifest, args.max_bad_ratio)
    write_shards(table, args.output_dir, rows_per_file, manifest)
    for name, rows in manifest.extra["rows_by_source"].items():
        print(f"{rows:>9,} rows  {name}")
    print(
        f"{table.num_rows:,} rows in {len(manifest.outputs)} shards in {args.output_dir}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
