"""How much of an evaluation is not the model's: reading, prompts, tokens, metrics, intervals, writing.

    python scripts/perf/evaluate.py --model_path runs/quickstart/models/sft/hf --data_dir runs/quickstart/output/benchmark_data
    python scripts/perf/evaluate.py … --tasks video --users 27000 --profile

Two runs of evaluate.py's own main. The first is real, on the test files as they are, and tells the model's seconds a prompt. The
second has every test row as often as it takes for ``--users`` users (copies with uuids and uids of their own), and answers are not
computed but taken from the first: what it takes outside the model is measured at full size, not scaled. The model's seconds
are scaled by prompts. Loading the weights counts as outside; imports do not, as a short evaluation comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import json
import os
import pstats
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import evaluate, model
from benchmarks.tasks import TASKS
from onerec.cli import cli
from onerec.flags import COUNT, COUNT_OR_ALL, ArgumentParser
from onerec.items.decode import batches_by_length
from onerec.parquet import read_table, write_table
from onerec.run import write_json

METHODS = ("generate", "rank", "next_logprobs", "tail_logprobs")


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    add("--data_dir", type=Path, required=True, help="benchmark_data folder")
    add("--tasks", nargs="+", choices=TASKS, default=["video", "label_pred"], help="which (video label_pred)")
    add("--samples", type=COUNT_OR_ALL, default=-1, help="test rows a task of the first run (-1: all)")
    add("--users", type=COUNT, default=27_000, help="users of the second run (27,000)")
    add("--num_beams", type=COUNT, default=32, help="beams of the item search (32)")
    add("--token_budget", type=COUNT, default=16384, help="tokens of a padded batch (16384)")
    add(
        "--clock", choices=("wall", "cpu"), default="wall",
        help="cpu: the process' processor time, for a machine that others use too (with OMP_NUM_THREADS=1)",
    )  # fmt: skip
    add("--profile", action="store_true", help="print where the second run's time goes")
    add("--output", type=Path, default=None, help="JSON file of the figures")
    return parser.parse_args()


class Recorder:
    """A backend that keeps what the one inside it answers."""

    def __init__(self, inner: Any, known: dict[tuple, Any]) -> None:
        self.inner, self.known = inner, known
        self.context, self.rows = inner.context, inner.rows
        self.prompts = 0

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        def call(prompts: Any, *args: Any) -> Iterator[list[tuple[int, Any]]]:
            for batch in getattr(self.inner, name)(prompts, *args):
                self.prompts += len(batch)
                self.known |= {_key(name, prompts[i], args): value for i, value in batch}
                yield batch

        return call


class Player:
    """A backend that answers at once what a `Recorder` heard, in batches as `hf` has them."""

    def __init__(self, recorder: Recorder, token_budget: int) -> None:
        self.known, self.context, self.rows = recorder.known, recorder.context, recorder.rows
        self.token_budget, self.prompts = token_budget, 0

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        def call(prompts: Any, *args: Any) -> Iterator[list[tuple[int, Any]]]:
            for batch in batches_by_length(list(map(len, prompts)), self.token_budget):
                self.prompts += len(batch)
                yield [(i, self.known[_key(name, prompts[i], args)]) for i in batch]

        return call


def _key(name: str, prompt: list[int], args: tuple[Any, ...]) -> tuple:
    numbers = tuple(value for value in args if isinstance(value, int | str))
    return (name, *numbers, tuple(prompt))


def enlarge(source: Path, target: Path, tasks: list[str], samples: int, users: int) -> None:
    """The benchmark data of ``source`` with the tasks' first ``samples`` rows (-1: all) repeated for ``users`` users."""
    target.mkdir()
    for file in source.iterdir():
        if file.name not in tasks:
            (target / file.name).symlink_to(file.resolve())
    for name in tasks:
        rows = read_table(source / TASKS[name].test_file).to_pylist()[: samples if samples > 0 else None]
        metadata = [json.loads(row["metadata"]) for row in rows]
        present = {value.get("uid", row["uuid"]) for value, row in zip(metadata, rows, strict=True)}
        copies = -(-users // len(present))
        more = [
            {**row, "uuid": f"{copy}-{row['uuid']}", "metadata": json.dumps({**value, "uid": f"{copy}-{value.get('uid', row['uuid'])}"})}
            for copy in range(copies)
            for value, row in zip(metadata, rows, strict=True)
        ]  # fmt: skip
        write_table(target / TASKS[name].test_file, pa.Table.from_pylist(more))


def timed(
    args: argparse.Namespace, data: Path, samples: int, open_: Callable[..., Any], folder: Path
) -> dict[str, float]:
    """Seconds, the model's and the others', and prompts of one evaluation whose backend ``open_`` makes."""
    clock = time.process_time if args.clock == "cpu" else time.monotonic
    backends, models = [], []

    def remember(*positional: Any, **named: Any) -> Any:
        backends.append(open_(*positional, **named))
        return backends[-1]

    def opened(*positional: Any, **named: Any) -> Any:
        models.append(model.open_model(*positional, **named))
        return models[-1]

    before = model.open_backend, model.time, evaluate.open_model
    model.open_backend, model.time, evaluate.open_model = (
        remember,
        types.SimpleNamespace(monotonic=clock),
        opened,
    )  # type: ignore[assignment]
    argv = [
        "--model_path",
        str(args.model_path),
        "--result_name",
        "x",
        "--data_dir",
        str(data),
        "--output_dir",
        str(folder),
    ]
    argv += [
        "--num_beams",
        str(args.num_beams),
        "--token_budget",
        str(args.token_budget),
        "--tasks",
        *args.tasks,
        "--sample_size",
        str(samples),
    ]
    try:
        start = clock()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            evaluate.main(argv)
        seconds = clock() - start
    finally:
        model.open_backend, model.time, evaluate.open_model = before  # type: ignore[assignment]
    inside = models[-1].model_seconds
    return {"prompts": backends[-1].prompts, "seconds": seconds, "model": inside, "outside": seconds - inside}


def main() -> None:
    args = parse_args()
    recorders: list[Recorder] = []
    inner = model.open_backend

    def record(*positional: Any, **named: Any) -> Recorder:
        recorders.append(Recorder(inner(*positional, **named), {}))
        return recorders[-1]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed(args, args.data_dir, 1, record, folder / "first")  # libraries are imported when first used
        real = timed(args, args.data_dir, args.samples, record, folder / "real")
        enlarge(args.data_dir, folder / "data", args.tasks, args.samples, args.users)
        profile = cProfile.Profile() if args.profile else contextlib.nullcontext()
        with profile:
            large = timed(
                args,
                folder / "data",
                -1,
                lambda *_, **__: Player(recorders[-1], args.token_budget),
                folder / "large",
            )
    if args.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    scaled = real["model"] / real["prompts"] * large["prompts"]
    share = large["outside"] / (large["outside"] + scaled)
    print(f"{', '.join(args.tasks)}; {args.num_beams} beams, {args.clock} clock")
    print("| run | prompts | model, s | outside, s | outside a prompt, ms | outside, share |")
    print("|---|---|---|---|---|---|")
    for label, row, inside in (("real", real, real["model"]), (f"{args.users:,} users", large, scaled)):
        outside = row["outside"]
        print(
            f"| {label} | {row['prompts']:,.0f} | {inside:.1f} | {outside:.1f} "
            f"| {1e3 * outside / row['prompts']:.2f} | {outside / (outside + inside):.1%} |"
        )
    if args.output:
        figures = {"real": real, "large": large, "model_scaled": scaled, "share": share}
        config = {key: str(value) for key, value in vars(args).items()}
        write_json(args.output, {"config": config, "figures": figures})


if __name__ == "__main__":
    cli(main)()
