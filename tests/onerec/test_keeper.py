"""`owned`: whatever ends the script, the processes that its command started are gone, those that hid included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.keeper import STOPPED, owned
from tests.clusters import wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the keeper adopts orphans on Linux only")

# A command like a run of Ray: a child in a session of its own whose parent is gone and that ignores SIGTERM, a deaf
# grandchild of a process that dies, and itself.
TREE = """
import os, signal, subprocess, sys, time
mark = sys.argv[1]
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
sleep = [sys.executable, "-c", deaf, mark]
orphan = "import subprocess, sys; subprocess.Popen(sys.argv[1:], start_new_session=True)"
daemon = [sys.executable, "-c", orphan, *sleep]
subprocess.run(daemon, check=True)
subprocess.Popen(sleep, start_new_session=True)
time.sleep(300 if len(sys.argv) < 3 else float(sys.argv[2]))
sys.exit(3)
"""
SCRIPT = """
import signal, sys
from onerec.keeper import owned
with owned([sys.executable, "-c", *sys.argv[2:]], what_next="go on", grace=0.5, stdout=-1, text=True) as process:
    for line in process.stdout:
        print(line, end="", flush=True)
        if sys.argv[1] == "raise":
            raise ValueError
sys.exit(process.returncode)
"""


# One that starts a server itself, as vLLM does: a process that outlives it.
SELF = """
import subprocess, sys
from onerec.keeper import kept
def main():
    sleep = "import time; print('up', flush=True); time.sleep(300)"
    server = subprocess.Popen([sys.executable, "-c", sleep, sys.argv[1]])
    sys.exit(server.wait() if sys.argv[2] == "stay" else 5)
kept(main)()
"""


def marked(mark: str) -> list[int]:
    """Processes with ``mark`` on their command line, but for zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark in entry.read_text(errors="replace").split("\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def gone(mark: str) -> bool:
    return wait_until(lambda: not marked(mark))


def start(mark: str, what: str = "", *more: str) -> subprocess.Popen:
    """A script that owns `TREE`, when both of its deaf processes are up."""
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, what, TREE, mark, *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert script.stdout is not None
    said = [script.stdout.readline() for _ in range(1 if what else 2)]
    assert more or said == ["1\n"] * len(said), "a command that ends at once may take them along"
    return script


@pytest.fixture
def mark(tmp_path):
    """A word that no other process has on its command line; whatever has it at the end is killed."""
    yield f"mark-{os.getpid()}-{tmp_path.name}"
    for pid in marked(f"mark-{os.getpid()}-{tmp_path.name}"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, STOPPED), (signal.SIGINT, 130), (signal.SIGHUP, STOPPED)]
)
def test_a_signal_ends_all_processes_and_is_the_status(mark, number, status):
    script = start(mark)
    assert len(marked(mark)) >= 4, "the script, its command and two that hide"
    script.send_signal(number)
    _, error = script.communicate(timeout=600)
    assert script.returncode == status
    assert error == f"ended by {number.name}: go on\n"
    assert not marked(mark), "they are gone before the script is"


def test_a_killed_script_ends_all_processes(mark):
    script = start(mark)
    script.kill()
    script.communicate(timeout=600)
    assert gone(mark)


def test_an_exception_ends_all_processes(mark):
    script = start(mark, "raise")
    assert "ValueError" in script.communicate(timeout=600)[1] and script.returncode == 1
    assert not marked(mark)


def test_the_commands_status_comes_back_and_nothing_of_it_is_left(mark):
    script = start(mark, "", "0")
    script.communicate(timeout=600)
    assert script.returncode == 3 and not marked(mark)
    killed = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with owned(killed) as process:
        pass
    assert process.returncode == 128 + signal.SIGKILL
    with owned(["no-such-program"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.read() == "error: no-such-program: No such file or directory; a program that can be run\n"
    assert process.returncode == 127


def test_an_ignored_signal_stays_ignored(mark):
    """As under nohup: the terminal goes, the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        script = start(mark)
    finally:
        signal.signal(signal.SIGHUP, before)
    script.send_signal(signal.SIGHUP)
    script.send_signal(signal.SIGTERM)
    assert "ended by SIGTERM" in script.communicate(timeout=600)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_kept_script_leaves_no_server_behind(mark, number):
    command = [sys.executable, "-c", SELF, mark]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "stay"], env=environment, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout.readline() == "up\n"
        assert len(marked(mark)) == 4, "the script, its keeper, the same again, the server"
        script.send_signal(number)
    assert script.returncode == (STOPPED if number == signal.SIGTERM else -number)
    assert gone(mark)
    assert subprocess.run([*command, "leave"], env=environment, stdout=subprocess.DEVNULL).returncode == 5
    assert not marked(mark)
