"""Mix record files into shuffled training shards: prepare_pretrain.sh and prepare_sft.sh call this.

    python prepare_mix.py --config configs/sft.json --base_dir . --output_dir output/split_data_sft --seed 42

The config names the sources: {"sources": [{"name", "path" (file, folder or pattern, relative to --base_dir), "weight"
(share of the rows) and "max_rows"}], "folders" ({"NAME": folder}, for ``${NAME}`` in a path), "rows_per_file",
"exclude_users" (files of RL data or records whose users stay out of every source)}. {"tasks": "pretrain" or "sft",
"path": folder} is a source a task that has records there. A source with "optional": true may not be there. Writes
part-00000-of-000NN.parquet and file_list.json; memory is bounded by --buffer_mb whatever the input's size (4 TB for
each of its GB at most), and the result does not depend on it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.mix import Source, read_config
from data.pieces import Piece, pieces
from data.ray_shuffle import shuffle_on_ray
from data.shuffle import DOUBLE, SPILL, Shuffle, bucket_count, shuffle_to_shards
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, COUNT_OR_ALL, PROCESSES, RAY, SEED, ArgumentParser
from onerec.folders import atomic_path, made_by
from onerec.run import Manifest


def cut_sources(sources: Sequence[Source], seed: int, size: int, manifest: Manifest) -> Iterator[Piece]:
    """The pieces of every source; a source's sample depends on the seed and its name."""
    for source in sources:
        manifest.extra.setdefault("rows_by_source", Counter())[source.name] += 0
        yield from pieces(source, np.random.default_rng([seed, *source.name.encode()]), size, manifest)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="JSON config with the sources")
    add("--base_dir", type=Path, default=Path(), help="folder that the sources' paths start from")
    instead = "replaces a folder of the config's"
    add("--folders", nargs="+", action="extend", default=[], metavar="NAME=PATH", help=instead)
    add("--output_dir", type=Path, required=True, help="folder for the shards")
    instead = "replaces the config's rows_per_file (-1: 1,000 where it says none)"
    add("--rows_per_file", type=COUNT_OR_ALL, default=-1, help=instead)
    add("--seed", type=SEED, default=42, help="seed of the samples and of the shuffle")
    add("--buffer_mb", type=COUNT, default=1024, help="record text in memory at a time")
    threads = "threads that compress shards, with --runner local"
    add("--threads", type=PROCESSES, default=min(8, os.cpu_count() or 1), help=threads)
    parser.add_runner()
    parser.add_max_bad_ratio()
    args = parser.parse_args(argv)
    if bad := [item for item in args.folders if "=" not in item]:
        raise InputError("--folders", f"{bad[0]} has no =", "NAME=PATH")
    manifest = Manifest("prepare_mix", args)
    folders = dict(item.split("=", 1) for item in args.folders)
    sources, rows_per_file = read_config(args.config, args.base_dir, manifest, folders)
    rows_per_file = rows_per_file if args.rows_per_file == -1 else args.rows_per_file
    wanted = sum(source.wanted for source in sources)
    size, buffer = sum(source.bytes for source in sources), args.buffer_mb << 20
    with atomic_path(args.output_dir, made_by(args.output_dir, manifest.stage)) as folder:
        (folder / SPILL).mkdir(parents=True)
        shuffle = Shuffle(folder, rows_per_file, args.seed, bucket_count(size, buffer), buffer)
        if args.runner == RAY:
            cut = cut_sources(sources, args.seed, buffer // 2, manifest)
            rows = shuffle_on_ray(cut, shuffle, wanted, manifest)
        else:
            cut = cut_sources(sources, args.seed, buffer // 8, manifest)
            rows = shuffle_to_shards(cut, shuffle, wanted, manifest, args.threads)
        shutil.rmtree(folder / SPILL)
        manifest.extra["buckets"] = shuffle.count
        shards = -(-rows // rows_per_file)
        doubles = manifest.dropped.get(DOUBLE, 0)
        bad = sum(manifest.dropped.values()) - doubles
        manifest.check_bad_ratio(args.config, bad, rows + bad + doubles, args.max_bad_ratio)
        if not rows:
            raise InputError(args.config, "names sources that give no row", "at least one good record")
        manifest.output(args.output_dir, rows)
        manifest.write(folder, whole_folder=True)
    excluded = manifest.extra.get("rows_of_excluded_users", {})
    for name, count in manifest.extra["rows_by_source"].items():
        note = f" ({excluded[name]:,} of excluded users left out)" if name in excluded else ""
        print(f"{count:>9,} rows  {name}{note}")
    print(f"{rows:,} rows in {shards} shards in {args.output_dir}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
