"""A command whose processes all end with it, and with the script that started it, whatever ends that script.

A stage that starts servers (Ray, vLLM) runs its command within `owned`, or as a whole under `kept`. Between the script
and the command stands a keeper, this file as a process. It adopts every process that loses its parent below it (Linux's
child subreaper), so that none gets away, and ends them all when

- the command has ended, well or not;
- the script is told to end (SIGTERM, SIGINT, SIGHUP), which `owned` passes on;
- the script is gone, even by SIGKILL: the pipe that it held is closed.

Each gets SIGTERM and some seconds, then SIGKILL. Elsewhere than on Linux the keeper ends its own process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Seconds from SIGKILL until the keeper gives up on what the kernel does not let go.
_GIVE_UP = 10.0
# Exit status of what SIGTERM ended: run the same command again (EX_TEMPFAIL of sysexits.h).
STOPPED = 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_ENDING = (*STOP_SIGNALS, signal.SIGINT)
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# Set for the process that `kept` starts.
_KEPT = "ONEREC_KEPT"


def stop_status(number: int) -> int:
    """Exit status of a program that the signal ``number`` ended in good order."""
    return STOPPED if number in STOP_SIGNALS else 128 + number


def keep(command: Sequence[str], grace: float = 10.0, **popen: Any) -> subprocess.Popen:
    """Start ``command`` under a keeper, which ends all of it when its standard input is closed.

    ``grace``: seconds from SIGTERM to SIGKILL. ``popen``: further arguments of `subprocess.Popen`.
    """
    keeper = [sys.executable, "-I", str(Path(__file__).resolve()), str(grace), *command]
    return subprocess.Popen(keeper, stdin=subprocess.PIPE, start_new_session=True, **popen)


@contextlib.contextmanager
def owned(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    what_next: str | None = "the same command begins again",
    grace: float = 10.0,
    **popen: Any,
) -> Iterator[subprocess.Popen]:
    """Run ``command`` as the block's process; when the block is left, it and all that it started are gone.

    The process's status is the command's, as a shell gives it (128 + signal). Leaving the block by an exception, or by
    a signal to this script, ends them early; after a signal ``what_next`` is said on standard error (None: the command
    says it itself) and the script exits with `stop_status`. ``grace``, ``popen``: as of `keep`. Signals that are
    ignored (``nohup``) stay ignored. For the main thread only.
    """
    keeper = keep(command, grace, env=env, **popen)
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        with contextlib.suppress(ProcessLookupError):
            keeper.send_signal(signal.SIGTERM)

    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    try:
        with keeper:
            try:
                yield keeper
                keeper.wait()
            finally:
                keeper.stdin.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        if what_next:
            print(f"ended by {signal.Signals(received[0]).name}: {what_next}", file=sys.stderr, flush=True)
        sys.exit(stop_status(received[0]))


def kept(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap the ``main`` of a script that starts servers: the same command line runs once more, under a keeper."""

    def run() -> None:
        if os.environ.pop(_KEPT, None):
            return main()
        environment = {**os.environ, _KEPT: "1"}
        with owned([sys.executable, *sys.orig_argv[1:]], env=environment, what_next=None) as process:
            pass
        sys.exit(process.returncode)

    return run


def descendants(root: int) -> list[int]:
    """Processes below ``root``, parents first, as ``/proc`` has them now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; behind it come state and parent.
            parent = entry.read_text(errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _run_until_told(grace: float, command: Sequence[str]) -> int:
    """The keeper: run ``command`` until it ends, standard input does, or a signal comes; end all; return its status."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A signal only wakes the wait below; which one it was stands in the pipe.
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    for number in (*_ENDING, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"error: {command[0]}: {error.strerror}; a program that can be run", file=sys.stderr)
        return 127
    statuses: dict[int, int] = {}
    while child.pid not in statuses:
        ready = select.select([sys.stdin, wake], [], [])[0]
        if sys.stdin in ready or set(os.read(wake, 64)) & set(_ENDING):
            break
        _reap(statuses)
    _end_all(statuses, grace)
    status = statuses.get(child.pid, -signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _reap(statuses: dict[int, int]) -> bool:
    """Note the exit statuses (minus the signal) of children that have ended, adopted ones too; whether others live."""
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            statuses[ended[0]] = os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        return False
    return True


def _end_all(statuses: dict[int, int], grace: float) -> None:
    """SIGTERM to all processes below, after ``grace`` seconds SIGKILL, until no child is left."""
    begun, told = time.monotonic(), set()
    while _reap(statuses) and (passed := time.monotonic() - begun) < grace + _GIVE_UP:
        for pid in descendants(os.getpid()):
            if passed > grace or pid not in told:
                told.add(pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if passed > grace else signal.SIGTERM)
        if not told:  # no /proc here
            os.killpg(0, signal.SIGKILL if passed > grace else signal.SIGTERM)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(_run_until_told(float(sys.argv[1]), sys.argv[2:]))
