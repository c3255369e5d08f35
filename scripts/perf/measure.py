"""What the yardsticks of this folder share: shapes, clocks, sides that take turns, tables."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


def print_row(*cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def print_heads(*cells: str) -> None:
    """The first two lines of a Markdown table."""
    print_row(*cells)
    print("|---" * len(cells) + "|", flush=True)


def range_of(values: Sequence[float], digits: int = 2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"
