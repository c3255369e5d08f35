"""The shell scripts: every one parses, and a missing argument is one line with exit status 2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    path
    for path in [*ROOT.rglob("*.sh"), *ROOT.rglob("*.env"), ROOT / ".ci" / "run"]
    if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_parses(path):
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "recipes/amazon_beauty.sh", "recipes/amazon_toys.sh", "recipes/movielens100k.sh", "recipes/ablations.sh",
        "recipes/ablations.sh amazon_toys", "choose_checkpoint.sh", "11_evaluate.sh", "quickstart.sh --seed",
        "quickstart.sh --run_dir", "quickstart.sh --movielens",
    ],
)  # fmt: skip
def test_a_missing_argument_is_one_line(command, tmp_path, monkeypatch):
    monkeypatch.setenv("RUN_DIR", str(tmp_path / "run"))
    name, *arguments = command.split()
    done = subprocess.run(["bash", str(ROOT / "scripts" / name), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
