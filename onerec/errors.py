"""What bad input gets: one line on standard error, exit status 2, nothing half-written. And what a stop from outside gets."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
# Exit status of what SIGTERM ended (a cluster takes the node back): run the same command again. EX_TEMPFAIL of sysexits.h.
STOPPED = 75
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class InputError(Exception):
    """Input that the program cannot use.

    ``InputError(file, what, right)`` prints as ``error: <file>: <what>; <right>``: the file (or flag, or
    folder) at fault, what is wrong with it, and what would be right.
    """

    def __init__(self, file: object, what: str, right: str) -> None:
        self.file, self.what, self.right = str(file), what, right
        super().__init__(f"{file}: {what}; {right}")


def from_os_error(error: OSError) -> InputError:
    """Say an operating-system error (disk full, no permission, no such file) in the house's form."""
    file = error.filename or "output"
    if error.errno in DISK_FULL:
        return InputError(
            file, "no space left on the device", "free some space or choose another output folder"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(file, "permission denied", "choose a path that this user may read and write")
    if error.errno == errno.ENOENT:
        return InputError(file, "no such file or folder", "check the path")
    return InputError(file, error.strerror or str(error), "check the path and the device")


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the program stands, so that it clears up as after Ctrl-C."""


def stop_status(number: int) -> int:
    """Exit status of a program that the signal ``number`` ended in good order."""
    return STOPPED if number in STOP_SIGNALS else 128 + number


@contextlib.contextmanager
def signals_to(handler: Callable[[int, object], None], numbers: Sequence[int]) -> Iterator[None]:
    """Have ``handler(number, frame)`` called for signals; those that are ignored (nohup) stay so. In the main thread alone."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: old for number, old in before.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _raise_stopped(number: int, frame: object) -> None:
    for each in STOP_SIGNALS:  # torchrun and SLURM may send it twice; clearing up goes on
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signal.Signals(number).name)


def cli(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a script's ``main``: `InputError` and `OSError` become the one line and exit status 2.

    SIGTERM, SIGHUP and Ctrl-C end it by an exception, so that what is half-written goes and no process stays, with a line and
    the exit status `STOPPED` (Ctrl-C: 130).
    """
    # Both import this module.
    from onerec.openonerec import translated
    from onerec.run import own_code_first

    @functools.wraps(main)
    def run() -> None:
        try:
            with signals_to(_raise_stopped, STOP_SIGNALS):
                own_code_first()
                sys.argv[1:] = translated(Path(sys.argv[0]), sys.argv[1:])
                sys.exit(main() or 0)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                sys.exit(141)
            print(f"error: {from_os_error(error)}", file=sys.stderr)
        except KeyboardInterrupt as stop:
            if os.environ.get("RANK", "0") == "0":
                print(
                    f"interrupted{f' by {stop}' if str(stop) else ''}: finished outputs stay usable; "
                    "run the same command again to go on",
                    file=sys.stderr,
                )
            sys.exit(STOPPED if isinstance(stop, Stopped) else 130)
        sys.exit(2)

    return run
