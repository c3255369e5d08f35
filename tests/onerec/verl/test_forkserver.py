"""Ray's workers as forks: without Ray, a stand-in's parent counts as the raylet, and any script as a worker."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from onerec.keeper import descendants
from onerec.verl import forkserver
from tests.clusters import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
# Says once where it is imported, and what a fork inherits of it.
MODULE = """
import os
open(os.environ["SEEN"], "a").write("imported\\n")
os.environ["SET_BY_IMPORT"] = "yes"
"""
WORKER = """
import os, sys, time
import heavy
print(sys.argv[2:], os.getcwd(), os.environ["SET_BY_IMPORT"], os.environ["OWN"], __name__, flush=True)
time.sleep(float(os.environ.get("SLEEP", 0)))
sys.exit(int(os.environ.get("STATUS", 0)))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "heavy.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    return tmp_path


def worker(folder: Path, modules: str = "heavy", **variables: str) -> dict[str, object]:
    """Arguments of `subprocess` for a worker as Ray starts it."""
    words = [str(folder / "worker.py"), f"--raylet-name={folder / 'raylet'}", "a word", "--flag=1"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SEEN": str(folder / "seen"), "OWN": "1"} | variables
    command = f"exec {forkserver.executable(modules)} {shlex.join(words)}"
    return {"args": ["bash", "-c", command], "env": environment, "cwd": folder, "text": True}


def run(folder: Path, modules: str = "heavy", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**worker(folder, modules, **variables), capture_output=True, timeout=60)


def forks(folder: Path) -> list[int]:
    """Processes of the folder's server: itself and its forks."""
    named = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _of(pid, folder)]
    return sorted({pid for server in named for pid in [server, *descendants(server)]})


def _of(pid: int, folder: Path) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return "--serve" in words and any(word.startswith(str(folder)) for word in words)


def test_workers_share_what_is_imported_and_keep_what_is_their_own(folder):
    first, second = run(folder), run(folder, OWN="2", STATUS="7")
    told = "['a word', '--flag=1'] {} yes {} __main__\n"
    assert (first.returncode, first.stdout) == (0, told.format(folder, 1)), first.stderr
    assert (second.returncode, second.stdout) == (7, told.format(folder, 2)), second.stderr
    assert (folder / "seen").read_text() == "imported\n"
    # A run with other modules has a server of its own.
    assert run(folder, "heavy,json").returncode == 0
    assert (folder / "seen").read_text() == "imported\n" * 2
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir() if path.is_socket()} == {"0o600"}


def test_a_worker_ends_with_its_stand_in(folder):
    with subprocess.Popen(**worker(folder, SLEEP="60"), stdout=subprocess.PIPE) as stand_in:
        assert "a word" in stand_in.stdout.readline()
        assert len(forks(folder)) == 2
        stand_in.kill()
        assert wait_until(lambda: len(forks(folder)) == 1)
    # And a stand-in with its worker: that of a killed one has a shell's status.
    with subprocess.Popen(**worker(folder, SLEEP="60"), stdout=subprocess.PIPE) as stand_in:
        stand_in.stdout.readline()
        (pid,) = [pid for pid in forks(folder) if not _of(pid, folder) or descendants(pid) == []]
        os.kill(pid, signal.SIGKILL)
        assert stand_in.wait(timeout=20) == 128 + signal.SIGKILL


def test_the_server_and_its_forks_end_with_the_raylet(folder):
    start = worker(folder, SLEEP="60")
    start["args"] = ["bash", "-c", f"{start['args'][2].removeprefix('exec ')} & wait"]
    with subprocess.Popen(**start, stdout=subprocess.PIPE) as raylet:
        assert "a word" in raylet.stdout.readline()
        assert len(forks(folder)) == 2
        raylet.kill()
        assert wait_until(lambda: not forks(folder)), "the server is gone"


def test_stand_ins_that_do_not_wait_for_slow_imports_do_not_end_them(folder):
    """Ray kills a worker that has not registered within a minute, and starts another in its place."""
    (folder / "heavy.py").write_text("import time; time.sleep(2)\n" + textwrap.dedent(MODULE))
    for _ in range(2):
        with subprocess.Popen(**worker(folder)) as stand_in:
            assert wait_until(lambda: forks(folder))
            time.sleep(0.3)
            stand_in.kill()
    last = run(folder)
    assert "a word" in last.stdout and "no fork server" not in last.stderr
    assert (folder / "seen").read_text() == "imported\n"


def test_without_a_server_a_worker_starts_as_usual(folder):
    alone = run(folder, "no_such_module", SET_BY_IMPORT="alone")
    assert alone.returncode == 0 and "no fork server" in alone.stderr
    assert "No module named 'no_such_module'" in alone.stderr and "yes 1 __main__" in alone.stdout


def test_a_server_that_nobody_needs_ends(folder, monkeypatch):
    assert run(folder).returncode == 0 and len(forks(folder)) == 1
    assert wait_until(lambda: not forks(folder), forkserver._IDLE + 10)
    assert not [path for path in folder.iterdir() if path.is_socket()]
    assert run(folder).returncode == 0, "another is started"
