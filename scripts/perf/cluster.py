"""What the data stage of a platform costs on a cluster: bytes and processor seconds a user, measured here, and a model.

    python scripts/perf/cluster.py                                  # measures 2,000 users, models 10^6 to 10^9
    python scripts/perf/cluster.py --cores 96 --node_gb_s 2 --store_gb_s 200
    python scripts/perf/cluster.py --write docs/cluster.md

The users are those of data.py. Measured, in this process, by its own seconds: reading the logs and handing records to
the files (the command itself), compressing the records (its four threads), building them (workers, or tasks), then the
steps of the shuffle of data/ray_shuffle.py, and the check of the shards. Modelled: the slowest of processors, a node's
link to the shared file system, and the file system; no node waits for another, no disk is slower than the link, nothing
fails. The logs are cut into folders of users, one run.sh a node, since one command feeds only so many cores (printed).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, add_numbers

sys.path.remove(str(Path(__file__).parent))  # its data.py is not the package data
from data import ray_shuffle, validate
from data.mix import read_config
from data.onerec_data import build
from data.onerec_data import run as tasks
from data.prepare_mix import cut_sources
from data.shuffle import SPILL, Shuffle, bucket_count
from onerec.cli import cli
from onerec.flags import COUNT, POSITIVE
from onerec.run import Manifest, write_text
from onerec.tasks import TASKS

USERS, NODES = (10**6, 10**8, 10**9), (8, 64, 512)
WRITERS = 4  # threads of the command that compress records
_BEGIN, _END = "<!-- cluster.py -->\n", "<!-- end of cluster.py -->"
BUFFER_MB = 64  # small, so that the sample has several pieces and buckets


@dataclasses.dataclass
class Cost:
    """Of one user: bytes by what they are, processor seconds by who spends them."""

    bytes: dict[str, float]
    seconds: dict[str, float]


def make_release(folder: Path, users: int, items: int) -> None:
    """The input of scripts/perf/data.py."""
    spec = importlib.util.spec_from_file_location("perf_data", ROOT / "scripts/perf/data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make_release(folder, users, items, module.CAPTIONS)


def build_cost(folder: Path, users: int) -> Cost:
    """Of the eleven tasks, by one process; the captions' part, which does not grow with the users, stays in."""
    inputs = {"input": "release", "pid2sid": "video_ad_pid2sid", "product_pid2sid": "product_pid2sid"}
    parser = ArgumentParser()
    tasks.add_arguments(parser)
    argv = [part for flag, name in inputs.items() for part in (f"--{flag}", str(folder / f"{name}.parquet"))]
    args = parser.parse_args([*argv, "--output_dir", str(folder / "output")])
    run = tasks.Run([task for task in TASKS.values() if task.default and task.name not in _OF_ITEMS], args)
    built, original = [0.0], build.build_users

    def timed(*arguments: Any) -> Any:
        began = time.thread_time()
        try:
            return original(*arguments)
        finally:
            built[0] += time.thread_time() - began

    build.build_users = timed
    whole, own = time.process_time(), time.thread_time()
    run()
    whole, own = time.process_time() - whole, time.thread_time() - own
    build.build_users = original
    records = sum(file.stat().st_size for file in (folder / "output").glob("*.parquet"))
    bytes_ = {"logs read": (folder / "release.parquet").stat().st_size, "records written": records}
    return Cost(
        {name: value / users for name, value in bytes_.items()},
        {"command": (own - built[0]) / users, "compress": (whole - own) / users, "build": built[0] / users},
    )


_OF_ITEMS = [name for name, builder in tasks.BUILDERS.items() if builder.over == "items"]


def shuffle_cost(folder: Path, users: int) -> Cost:
    """Of the three steps over all the records, step by step as the tasks of a cluster do them."""
    (folder / "mix.json").write_text(json.dumps({"sources": [{"name": "all", "path": "output"}]}))
    manifest = Manifest("prepare_mix")
    sources, rows_per_file = read_config(folder / "mix.json", folder, manifest)
    text, buffer = sum(source.bytes for source in sources), BUFFER_MB << 20
    shuffle = Shuffle(folder / "mixed", rows_per_file, 0, bucket_count(text, buffer), buffer)
    (shuffle.folder / SPILL).mkdir(parents=True)
    seconds: dict[str, float] = {}

    def step(name: str, function: Callable[[Any], Any], jobs: Iterator[Any]) -> list[Any]:
        began = time.process_time()
        done = [function(job) for job in jobs]
        seconds[name] = (time.process_time() - began) / users
        return done

    pieces = enumerate(cut_sources(sources, 0, buffer // 2, manifest))
    spilled = step("spill", ray_shuffle.spill_piece, ((shuffle, number, piece) for number, piece in pieces))
    files = [file for each in spilled for file in each.files]
    ray_shuffle.begin(shuffle, files)
    counted = step("count", ray_shuffle.count_bucket, iter(range(shuffle.count)))
    placed, rows = ray_shuffle.place_buckets([rows for rows, _ in counted])
    ray_shuffle.begin(shuffle, files, -(-rows // rows_per_file))
    jobs = [(ray_shuffle.write_bucket, bucket) for bucket in placed]
    jobs += [(ray_shuffle.join_shard, job) for job in ray_shuffle.shards_to_join(placed, rows, rows_per_file)]
    step("sort and write", lambda job: job[0](job[1]), iter(jobs))
    step("validate", validate.check_file, iter(sorted(shuffle.folder.glob("part-*"))))
    spill = sum(file.stat().st_size for file in files)
    shards = sum(file.stat().st_size for file in shuffle.folder.glob("part-*"))
    return Cost({"text": text / users, "spilled": spill / users, "shards": shards / users}, seconds)


def minutes(
    args: argparse.Namespace, users: int, nodes: int, seconds: float, moved: float, most: float = np.inf
) -> float:
    """Minutes of a step that takes a core's ``seconds`` and moves bytes a user, on at most so many cores of a node."""
    cores = users * seconds / (nodes * min(args.cores, most))
    link = users * moved / (nodes * args.node_gb_s * 1e9)
    return max(cores, link, users * moved / (args.store_gb_s * 1e9)) / 60


def page(args: argparse.Namespace, made: Cost, mixed: Cost) -> Iterator[str]:
    """The measurements and the model, as lines of Markdown."""
    for what, cost in (("`data/onerec_data/run.sh`", made), ("the mix", mixed)):
        sizes = ", ".join(f"{size / 1e3:.1f} kB {name}" for name, size in cost.bytes.items())
        seconds = ", ".join(f"{1e3 * value:.2f} ms {name}" for name, value in cost.seconds.items())
        yield f"- {what}, a user: {sizes}; of a core {seconds}"
    serial = max(made.seconds["command"], made.seconds["compress"] / WRITERS)
    fed = sum(made.seconds.values()) / serial
    yield f"- one run feeds about {fed:.0f} cores: {3600 / serial / 1e6:.0f} million users an hour"
    node = f"{args.cores} cores and {args.node_gb_s:g} GB/s a node"
    yield f"\n{node}, {args.store_gb_s:g} GB/s of the file system in all:\n"
    names = ("logs read", "records written", "spilled", "shards")
    columns = ["users", "nodes", *(f"{name}, TB" for name in names), "disk, TB", "run.sh, minutes", "mix, minutes"]
    yield f"| {' | '.join(columns)} |"
    yield "| ---: " * len(columns) + "|"
    size = made.bytes | mixed.bytes
    run_moves = size["logs read"] + size["records written"]
    mix_moves = size["records written"] + 2 * size["spilled"] + 2 * size["shards"]
    for users, nodes in itertools.product(args.users_modelled, args.nodes):
        run = minutes(args, users, nodes, sum(made.seconds.values()), run_moves, fed)
        mix = minutes(args, users, nodes, sum(mixed.seconds.values()), mix_moves)
        disk = [size[name] * users / 1e12 for name in names]
        cells = [f"{value:.3g}" for value in (*disk, sum(disk))] + [f"{value:,.1f}" for value in (run, mix)]
        yield f"| {users:,} | {nodes} | {' | '.join(cells)} |"


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_numbers(parser, users=(2000, "users that are measured"), items=(200_000, "items of each SID table"))
    add_numbers(parser, cores=(64, "cores of a node"))
    parser.add_argument("--node_gb_s", type=POSITIVE, default=1.0, help="GB/s between a node and the file system (1)")
    parser.add_argument("--store_gb_s", type=POSITIVE, default=100.0, help="GB/s of the file system in all (100)")
    parser.add_argument("--users_modelled", type=COUNT, nargs="+", default=USERS, help="users that are modelled")
    parser.add_argument("--nodes", type=COUNT, nargs="+", default=NODES, help="nodes that are modelled")
    parser.add_argument("--write", type=Path, help="a document that takes the result, between its two marks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_release(folder, args.users, args.items)
        made = build_cost(folder, args.users)
        text = "\n".join(page(args, made, shuffle_cost(folder, args.users)))
    print(text)
    if args.write:
        head, _, rest = args.write.read_text(encoding="utf-8").partition(_BEGIN)
        write_text(args.write, f"{head}{_BEGIN}{text}\n{_END}{rest.partition(_END)[2]}")


if __name__ == "__main__":
    cli(main)()
