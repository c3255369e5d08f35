"""What is stopped or killed from outside: a status that says go on, nothing half-written, and no process that stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from onerec.keeper import STOPPED

# Two workers that wait; the main process says who they are, with half an output on the disk.
SCRIPT = """
import os, sys, threading
from pathlib import Path
from onerec.cli import cli
from onerec.folders import atomic_path
from onerec.workers import map_in_order

def work(item):
    if item == 0:
        return os.getpid()
    threading.Event().wait(3600)

def main():
    with atomic_path(sys.argv[1]) as half:
        half.write_text("half")
        for pid in map_in_order(work, range(100), 2):
            print("begun", pid, flush=True)

if __name__ == "__main__":
    cli(main)()
"""


@pytest.fixture
def begun(tmp_path):
    """A running `SCRIPT`, its workers, and the path of its output."""
    (tmp_path / "script.py").write_text(SCRIPT)
    output = tmp_path / "out" / "output"
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as run:
        children = []
        try:
            assert any(line.startswith("begun") for line in run.stdout)
            children = psutil.Process(run.pid).children(recursive=True)
            yield run, children, output
        finally:
            run.kill()
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [
        (
            signal.SIGTERM,
            STOPPED,
            "interrupted by SIGTERM: finished outputs stay usable; run the same command",
        ),
        (signal.SIGHUP, STOPPED, "interrupted by SIGHUP: finished outputs"),
        (signal.SIGINT, 130, "interrupted: finished outputs"),
    ],
)
def test_a_stop_from_outside_clears_up(begun, sent, status, says):
    run, children, output = begun
    assert len(children) >= 2 and len(list(output.parent.iterdir())) == 1
    run.send_signal(sent)
    if sent != signal.SIGINT:  # torchrun and SLURM send it twice
        run.send_signal(sent)
    _, error = run.communicate(timeout=600)
    assert run.returncode == status and error.startswith(says), error
    assert not output.parent.exists()
    assert not psutil.wait_procs(children, timeout=300)[1]


def test_workers_end_with_a_parent_that_is_killed(begun):
    run, children, _ = begun
    run.kill()
    assert not psutil.wait_procs(children, timeout=300)[1]


def test_a_worker_that_is_killed_is_one_line(begun):
    run, children, output = begun
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    _, error = run.communicate(timeout=600)
    assert run.returncode == 2
    assert error.splitlines()[-1].startswith("error: a worker process: died (killed from outside, or out of")
    assert not output.parent.exists()
    assert not psutil.wait_procs(children, timeout=300)[1]


def test_an_ignored_signal_stays_ignored(tmp_path):
    """nohup: the terminal may close."""
    script = "import os, signal\nfrom onerec.cli import cli\ncli(lambda: os.kill(os.getpid(), signal.SIGHUP))()"
    root = Path(__file__).resolve().parents[2]
    command = f'trap "" HUP; exec {sys.executable} -c "$0"'
    done = subprocess.run(["bash", "-c", command, script], env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0


def test_without_room_for_semaphores_one_process_does_the_work(monkeypatch, capsys):
    from onerec import workers

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", full)
    begun = []
    assert list(workers.map_in_order(abs, [-1, 2], 2, begun.append, ("here",))) == [1, 2] and begun == ["here"]
    assert capsys.readouterr().err.startswith("one process instead of 2: no semaphores")
