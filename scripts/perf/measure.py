"""Time and memory of a command, for the benchmarks of this folder."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def measured(command: list[str], limit_gib: float | None = None, clock: str = "wall") -> tuple[float, float]:
    """(seconds, GiB of the largest resident size) of a command; ends with its output where it fails.

    ``clock``: ``wall``, or ``cpu`` for processor seconds, its children's included. ``limit_gib``: the kernel refuses the process more private memory than that (Linux's RLIMIT_DATA).
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def limit() -> None:
        if limit_gib:
            resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)

    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, preexec_fn=limit)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start if clock == "wall" else usage.ru_utime + usage.ru_stime
        if status:
            log.seek(0)
            sys.exit(f"{' '.join(command)}\n{log.read()}")
    return seconds, usage.ru_maxrss / (1 << 20 if sys.platform == "linux" else 1 << 30)
