"""The shell scripts: every one parses, and a missing argument is one line with exit status 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.processes import descendants, stop_status
from tests.clusters import wait_until

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


# A stage as quickstart.sh runs it, with a process in a session of its own.
OWNER = """
source scripts/owned.sh
owned bash -c 'setsid sleep 300 & echo up; sleep 300; echo after'
echo "status $?"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_what_ends_a_script_ends_what_it_runs(number):
    with subprocess.Popen(["bash", "-c", OWNER], cwd=ROOT, stdout=-1, stderr=-1, text=True) as owner:
        assert owner.stdout.readline() == "up\n"
        assert wait_until(lambda: len(descendants(owner.pid)) >= 4)
        below = descendants(owner.pid)
        owner.send_signal(number)
        output, error = owner.communicate(timeout=60)
        assert output == ""
    if number == signal.SIGKILL:
        assert owner.returncode == -number
        assert wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))
    else:
        assert owner.returncode == stop_status(number)
        assert error.startswith("interrupted: run the same command again")
        assert not any(Path(f"/proc/{pid}").exists() for pid in below)


def test_a_script_that_ends_gives_the_status_of_what_it_ran():
    script = "set -e; source scripts/owned.sh; owned true; owned bash -c 'exit 5' || echo $?; owned false; echo after"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "5\n" and not done.stderr


@pytest.mark.parametrize("name", ["09_distillation.sh", "10_rl_grpo.sh"])
def test_a_signal_to_a_numbered_script_reaches_python(name, tmp_path):
    """It becomes the stage's script, and that becomes Python: all of them have one process id."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho id $$\n")
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "RUN_DIR": str(tmp_path / "run")}
    with subprocess.Popen(
        ["bash", str(ROOT / "scripts" / name)], env=environment, stdout=-1, text=True
    ) as script:
        output = script.communicate(timeout=60)[0]
    assert output.splitlines()[-1] == f"id {script.pid}"


def test_nodes_of_a_ray_cluster_agree_on_whether_they_ask_for_a_token(tmp_path):
    """Ray decides it by a file in the home folder, which a run on one machine leaves: the head would ask, the others would not have it."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\n")
    ssh.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_AUTH_MODE", None)  # Ray leaves it in a process that has used it, as another test may
    command = ["bash", str(ROOT / "scripts" / "ray_start.sh"), "head", "worker"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    starts = [line for line in done.stdout.splitlines() if "ray start" in line]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=disabled " in line for line in starts)
    assert done.stdout.splitlines()[-1].startswith(
        "on head: RAY_ADDRESS=head:6379 RAY_AUTH_MODE=disabled NNODES=2 bash"
    )
