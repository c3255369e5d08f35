"""What the yardsticks of this folder share: shapes, clocks, sides that take turns, tables."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from onerec.flags import COUNT, ArgumentParser
from onerec.qwen3 import ITEMIC, QWEN3, Shape

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Qwen3's own with 3 x 8,192 itemic tokens, and two for CPUs.
SIZES = {
    "toy": Shape(64, 2, 4, 2, 128, True, head_dim=16, vocab_size=ITEMIC + 1000),
    "small": Shape(256, 6, 4, 2, 768, True, head_dim=64),
    **QWEN3,
}


def add_numbers(parser: ArgumentParser, **flags: tuple[int, str]) -> None:
    """A whole-number flag for each (default, what it is)."""
    for name, (value, text) in flags.items():
        parser.add_argument(f"--{name}", type=COUNT, default=value, help=f"{text} (default {value})")


def add_clock(parser: ArgumentParser) -> None:
    """The flag of the clock."""
    text = "cpu: the process's own seconds, for a machine that others use too (with OMP_NUM_THREADS=1)"
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help=text)


def synchronize() -> None:
    """Wait for the GPU where torch is in use and has one."""
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.synchronize()


def spent(work: Callable[[], Any], clock: str = "wall") -> float:
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


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


class Used(NamedTuple):
    """What a command used, its own processes included: seconds, processor seconds, GiB of the largest process."""

    seconds: float
    processor: float
    gib: float


def used(command: Sequence[str], **variables: str) -> Used:
    """What a command used, with ``variables`` in its environment; ends with its output where it fails."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\n{log.read()}")
    gib = usage.ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)
    return Used(seconds, usage.ru_utime + usage.ru_stime, gib)


def measured(command: Sequence[str]) -> tuple[float, float]:
    """(seconds, GiB of the largest resident size) of a command; ends with its output where it fails."""
    found = used(command)
    return found.seconds, found.gib


def itself(*arguments: Any) -> tuple[dict[str, float], float]:
    """(what a call of this command wrote as JSON to its --out, its GiB): a part in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        _, gib = measured([sys.executable, sys.argv[0], *map(str, arguments), "--out", out.name])
        return json.loads(Path(out.name).read_text()), gib


def print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_heads(*cells: str) -> None:
    """The first two lines of a Markdown table."""
    print_row(*cells)
    print("|---" * len(cells) + "|", flush=True)


def range_of(values: Sequence[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
