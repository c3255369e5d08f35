"""Every numeric flag of every script: its range is declared, and what lies outside of it ends in the one line with status 2."""

from __future__ import annotations

import argparse
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Caught(Exception):
    """Raised instead of reading a command line."""


def scripts() -> list[str]:
    """Modules with a command line of their own."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [Path(line) for line in listed.stdout.splitlines() if not line.startswith("tests/")]
    return [
        ".".join(file.with_suffix("").parts)
        for file in files
        if "add_argument" in (ROOT / file).read_text() or "options" in (ROOT / file).read_text()
        if '__name__ == "__main__"' in (ROOT / file).read_text()
    ]


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a script's ``main`` makes."""

    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(self)

    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "perf"), *sys.path])
    main = importlib.import_module(module).main
    monkeypatch.setattr(sys, "argv", [module])
    for method in ("parse_args", "parse_known_args"):
        monkeypatch.setattr(argparse.ArgumentParser, method, caught)
    try:
        main([]) if inspect.signature(main).parameters else main()
    except Caught as found:
        return found.args[0]
    raise AssertionError(f"{module} reads no command line")
