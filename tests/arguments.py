"""Command lines of tests."""

import sys
from pathlib import Path
from typing import Any


def as_flags(*more: str, **values: Any) -> list[str]:
    """``as_flags("--force", dim=2, results=[a, b])`` is ``--dim 2 --results a b --force``."""
    argv: list[str] = []
    for name, value in values.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return [*argv, *more]


def torchrun(processes: int, script: Path) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, "--nproc_per_node", str(processes), str(script)]
