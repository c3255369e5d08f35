"""Ray's workers as forks: without Ray, a stand-in's parent counts as the raylet, and any script as a worker."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from onerec.keeper import descendants
from onerec.verl import forkserver
from tests.clusters import started, wait_until

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
    return subprocess.run(**worker(folder, modules, **variables), capture_output=True, timeout=600)


@contextlib.contextmanager
def at_work(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker's stand-in while the worker lives; so long its server does not end for want of work."""
    with subprocess.Popen(**worker(folder, SLEEP="3600"), stdout=subprocess.PIPE) as stand_in:
        try:
            assert "a word" in stand_in.stdout.readline()
            yield stand_in
        finally:
            stand_in.kill()


def asks(stand_in: subprocess.Popen[str]) -> bool:
    """Whether a stand-in has got as far as its server."""
    with contextlib.suppress(OSError):
        return any(os.readlink(file).startswith("socket:") for file in Path(f"/proc/{stand_in.pid}/fd").iterdir())
    return False


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
    with at_work(folder):
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
    with at_work(folder):
        with at_work(folder) as stand_in:
            assert len(forks(folder)) == 3
            stand_in.kill()
            assert wait_until(lambda: len(forks(folder)) == 2)
        # And a stand-in with its worker: that of a killed one has a shell's status.
        before = forks(folder)
        with at_work(folder) as stand_in:
            (pid,) = set(forks(folder)) - set(before)
            os.kill(pid, signal.SIGKILL)
            assert stand_in.wait(timeout=600) == 128 + signal.SIGKILL


def test_the_server_and_its_forks_end_with_the_raylet(folder):
    start = worker(folder, SLEEP="3600")
    start["args"] = ["bash", "-c", f"{start['args'][2].removeprefix('exec ')} & wait"]
    with started(start.pop("args"), **start, stdout=subprocess.PIPE) as raylet:
        assert "a word" in raylet.stdout.readline()
        assert len(forks(folder)) == 2
        raylet.kill()
        assert wait_until(lambda: not forks(folder)), "the server is gone"


def test_stand_ins_that_do_not_wait_for_slow_imports_do_not_end_them(folder):
    """Ray kills a worker that has not registered within a minute, and starts another in its place."""
    slow = f"import os, time\nwhile not os.path.exists({str(folder / 'go')!r}): time.sleep(0.02)\n"
    (folder / "heavy.py").write_text(slow + textwrap.dedent(MODULE))
    for _ in range(2):
        with subprocess.Popen(**worker(folder)) as stand_in:
            assert wait_until(lambda: forks(folder) and asks(stand_in))
            stand_in.kill()
    with subprocess.Popen(**worker(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as last:
        assert wait_until(lambda: asks(last))
        (folder / "go").touch()
        out, error = last.communicate(timeout=600)
    assert "a word" in out and "no fork server" not in error
    assert (folder / "seen").read_text() == "imported\n"


def test_without_a_server_a_worker_starts_as_usual(folder):
    alone = run(folder, "no_such_module", SET_BY_IMPORT="alone")
    assert alone.returncode == 0 and "no fork server" in alone.stderr
    assert "No module named 'no_such_module'" in alone.stderr and "yes 1 __main__" in alone.stdout


def test_a_server_that_nobody_needs_ends(folder):
    with at_work(folder):
        assert len(forks(folder)) == 2
    assert wait_until(lambda: not forks(folder))
    assert not [path for path in folder.iterdir() if path.is_socket()]
    assert run(folder).returncode == 0, "another is started"
