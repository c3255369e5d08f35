"""How much of an evaluation is not the model's: reading, prompts, tokens, metrics, intervals, writing.

    python scripts/perf/evaluate.py --model_path runs/quickstart/models/sft/hf \\
        --data_dir runs/quickstart/output/benchmark_data --tasks video --users 27000

Two runs of evaluate.py's own main. The first is real, on the test files as they are, and tells the model's seconds a
prompt. The second has every test row as often as it takes for ``--users`` users (copies with uuids and uids of their
own), and answers are not computed but taken from the first: what it takes outside the model is measured at full size.
The model's seconds are scaled by prompts. Loading the weights counts as outside; imports do not, as a short evaluation
comes first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
from measure import CLOCKS, ArgumentParser, add_clock, add_numbers, print_heads, print_row, spent

from benchmarks import evaluate, model
from benchmarks.backends import base
from benchmarks.tasks import TASKS
from onerec.cli import cli
from onerec.flags import COUNT_OR_ALL
from onerec.items.item import batches_by_length
from onerec.parquet import read_table, write_table


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    parser.add_argument("--data_dir", type=Path, required=True, help="benchmark_data folder")
    tasks = ["video", "label_pred"]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=tasks, help="which (video label_pred)")
    parser.add_argument("--samples", type=COUNT_OR_ALL, default=-1, help="test rows a task of the first run (-1: all)")
    add_numbers(parser, users=(27_000, "users of the second run"), num_beams=(32, "beams of the item search"))
    add_numbers(parser, token_budget=(16384, "tokens of a padded batch"))
    add_clock(parser)
    return parser.parse_args()


class Recorder:
    """A backend that keeps what the one inside it answers, or answers at once what one kept, in the batches of hf."""

    def __init__(self, inner: Any, known: dict[tuple, Any] | None = None, token_budget: int = 0) -> None:
        self.inner, self.context, self.token_budget = inner, inner.context, token_budget
        self.replay, self.known, self.prompts = known is not None, known or {}, 0

    def __getattr__(self, name: str) -> Any:
        if name not in base.METHODS:
            raise AttributeError(name)

        def call(prompts: Any, *args: Any) -> Iterator[list[tuple[int, Any]]]:
            numbers = tuple(value for value in args if isinstance(value, int | str))
            keys = [(name, *numbers, tuple(prompt)) for prompt in prompts]
            for batch in self._replayed(keys, prompts) if self.replay else getattr(self.inner, name)(prompts, *args):
                self.prompts += len(batch)
                if not self.replay:
                    self.known |= {keys[i]: value for i, value in batch}
                yield batch

        return call

    def _replayed(self, keys: list[tuple], prompts: Any) -> Iterator[list[tuple[int, Any]]]:
        for batch in batches_by_length(list(map(len, prompts)), self.token_budget):
            yield [(i, self.known[keys[i]]) for i in batch]


def enlarge(source: Path, target: Path, tasks: list[str], samples: int, users: int) -> None:
    """The data of ``source``, with the tasks' first ``samples`` rows (-1: all) repeated for ``users`` users."""
    target.mkdir()
    for file in source.iterdir():
        if file.name not in tasks:
            (target / file.name).symlink_to(file.resolve())
    for name in tasks:
        rows = read_table(source / TASKS[name].test_file).to_pylist()[: samples if samples > 0 else None]
        metadata = [json.loads(row["metadata"]) for row in rows]
        uids = [value.get("uid", row["uuid"]) for value, row in zip(metadata, rows, strict=True)]
        more = []
        for copy in range(-(-users // len(set(uids)))):
            for value, row, uid in zip(metadata, rows, uids, strict=True):
                own = json.dumps({**value, "uid": f"{copy}-{uid}"})
                more.append({**row, "uuid": f"{copy}-{row['uuid']}", "metadata": own})
        write_table(target / TASKS[name].test_file, pa.Table.from_pylist(more))


def timed(args: argparse.Namespace, data: Path, samples: int, open_: Callable, folder: Path) -> dict[str, float]:
    """Seconds, the model's and the others', and prompts of one evaluation whose backend ``open_`` makes."""
    models = []

    def opened(*positional: Any) -> Any:
        models.append(model.open_model(*positional))
        return models[-1]

    flags = {"model_path": args.model_path, "result_name": "x", "data_dir": data, "output_dir": folder}
    flags |= {"num_beams": args.num_beams, "token_budget": args.token_budget, "sample_size": samples}
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    clock = types.SimpleNamespace(monotonic=CLOCKS[args.clock])
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (model, "open_backend", open_),
            (base, "time", clock),
            (evaluate, "open_model", opened),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        seconds = spent(lambda: evaluate.main([*argv, "--tasks", *args.tasks]), args.clock)
    backend = models[-1].backend
    return {"prompts": backend.inner.prompts, "model": backend.seconds, "outside": seconds - backend.seconds}


def main() -> None:
    args = parse_args()
    recorders: list[Recorder] = []
    open_backend = model.open_backend

    def record(*positional: Any, **named: Any) -> Recorder:
        recorders.append(Recorder(open_backend(*positional, **named)))
        return recorders[-1]

    def play(*_: Any, **__: Any) -> Recorder:
        return Recorder(recorders[-1], recorders[-1].known, args.token_budget)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        timed(args, args.data_dir, 1, record, folder / "first")  # libraries are imported when first used
        real = timed(args, args.data_dir, args.samples, record, folder / "real")
        enlarge(args.data_dir, folder / "data", args.tasks, args.samples, args.users)
        large = timed(args, folder / "data", -1, play, folder / "large")
    scaled = real["model"] / real["prompts"] * large["prompts"]
    print(f"{', '.join(args.tasks)}; {args.num_beams} beams, {args.clock} clock")
    print_heads("run", "prompts", "model, s", "outside, s", "outside a prompt, ms", "outside, share")
    for label, row, inside in (("real", real, real["model"]), (f"{args.users:,} users", large, scaled)):
        outside, prompts = row["outside"], row["prompts"]
        share = outside / (outside + inside)
        print_row(
            label, f"{prompts:,}", f"{inside:.1f}", f"{outside:.1f}", f"{1e3 * outside / prompts:.2f}", f"{share:.1%}"
        )


if __name__ == "__main__":
    cli(main)()
