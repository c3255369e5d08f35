"""What a shell script would run: the Python scripts that it calls, with their settings from flags and environment."""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Stands for Python: writes down how it was called, and ends well.
RECORDER = """#!{python}
import json, os, sys
with open({file!r}, "a") as file:
    print(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]), file=file)
"""


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    from tests.test_flags import parser_of

    return parser_of(script)


def taken(script: str, argv: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """The values of a Python script's flags on this command line, in this environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", environment)
        return vars(copy.deepcopy(parser_of(script)).parse_known_args(argv)[0])


class Calls:
    """A recorder in ``folder``, and what has called it."""

    def __init__(self, folder: Path) -> None:
        self.file, self.python = folder / "calls.jsonl", folder / "recording_python"
        self.python.write_text(RECORDER.format(python=sys.executable, file=str(self.file)))
        self.python.chmod(0o755)

    def run(self, command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
        """Run a command with the recorder for Python; nothing of the environment here but what programs need."""
        needed = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        self.file.write_text("")
        env = needed | {"PYTHON": str(self.python)} | environment
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)

    def taken(self) -> list[tuple[str, dict[str, Any]]]:
        """The Python scripts that were called, from the root, and what each has taken."""
        found = []
        for line in self.file.read_text().splitlines():
            cwd, argv, environment = json.loads(line)
            if argv[0].endswith("launch.py"):
                argv = argv[next(i for i, word in enumerate(argv) if i and word.endswith(".py")) :]
            script = str((Path(cwd) / argv[0]).resolve().relative_to(ROOT))
            found.append((script, taken(script, argv[1:], environment)))
        return found
