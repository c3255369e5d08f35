"""Command lines of tests."""

from typing import Any


def as_flags(**values: Any) -> list[str]:
    """``as_flags(dim=2, results=[a, b])`` is ``--dim 2 --results a b``."""
    argv: list[str] = []
    for name, value in values.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return argv
