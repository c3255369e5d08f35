"""What the yardsticks of this folder share: flags, clocks, sides that take turns, measured processes, tables."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from onerec.flags import COUNT, SEED, ArgumentParser

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def add_numbers(parser: ArgumentParser, **flags: tuple[int, str]) -> None:
    """A whole-number flag for each (default, what it is)."""
    for name, (value, text) in flags.items():
        taken = SEED if name == "seed" else COUNT
        parser.add_argument(f"--{name}", type=taken, default=value, help=f"{text} (default {value})")


def add_shape(parser: ArgumentParser, **defaults: int) -> None:
    """The flags that `qwen3` reads, with a yardstick's own defaults."""
    texts = {
        "layers": "transformer layers",
        "hidden": "width",
        "intermediate": "width of the MLP",
        "heads": "query heads",
        "kv_heads": "key and value heads",
        "head_dim": "width of a head",
    }
    add_numbers(parser, **{name: (defaults[name], text) for name, text in texts.items()})


def add_clock(parser: ArgumentParser) -> None:
    """The flag of the clock."""
    text = "cpu: the process's own seconds, for a machine that others use too (with OMP_NUM_THREADS=1)"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=text)


def qwen3(args: argparse.Namespace, vocabulary: int, **more: Any) -> Any:
    """A Qwen3 with random weights in the shape of the flags."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim,
        **more,
    )
    return Qwen3ForCausalLM(config)


def synchronize() -> None:
    """Wait for the GPU where torch is in use and has one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


def spent(work: Callable[[], Any], clock: str = "wall") -> float:
    """Seconds of a call."""
    synchronize()
    start = CLOCKS[clock]()
    work()
    synchronize()
    return CLOCKS[clock]() - start


def in_turns(sides: dict[str, Callable[[], Any]], repeats: int, clock: str = "wall") -> dict[str, list[float]]:
    """Seconds of every side by round; the sides take turns, and a first round, which warms up, is not counted."""
    for work in sides.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            seconds[name].append(spent(work, clock))
    return seconds


def ratios(seconds: dict[str, list[float]], side: str, first: str) -> list[float]:
    """Of every round, a side's seconds over those of the ``first``."""
    return [own / base for own, base in zip(seconds[side], seconds[first], strict=True)]


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds of every side."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def measured(command: list[str], limit_gib: float | None = None, clock: str = "wall") -> tuple[float, float]:
    """(seconds, GiB of the largest resident size) of a command; ends with its output where it fails.

    ``cpu`` seconds include its children's. ``limit_gib``: the kernel refuses the process more private memory than that
    (Linux's RLIMIT_DATA).
    """

    def limit() -> None:
        if limit_gib:
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)

    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=limit)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start if clock == "wall" else usage.ru_utime + usage.ru_stime
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\n{log.read()}")
    return seconds, usage.ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)


def itself(*arguments: Any) -> tuple[dict[str, float], float]:
    """(what a call of this command wrote as JSON to its --out, its GiB): a part in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        _, gib = measured([sys.executable, sys.argv[0], *map(str, arguments), "--out", out.name])
        return json.loads(Path(out.name).read_text()), gib


def print_row(*cells: Any) -> None:
    """A line of a Markdown table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_heads(*cells: str) -> None:
    """The first two lines of a Markdown table."""
    print_row(*cells)
    print("|---" * len(cells) + "|", flush=True)


def range_of(values: Sequence[float], digits: int = 2) -> str:
    """Least to most."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
