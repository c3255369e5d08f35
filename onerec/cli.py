"""How a script's ``main`` ends: errors as one line, signals in good order, each with its exit status."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onerec.errors import InputError, from_os_error, unforeseen
from onerec.openonerec import translated
from onerec.process_group import processes
from onerec.processes import STOP_SIGNALS, STOPPED
from onerec.run import own_code_first


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the program stands, so that it clears up as after Ctrl-C."""


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

    Any other exception too, with the traceback in a file that the line names.
    SIGTERM, SIGHUP and Ctrl-C end it by an exception, so that what is half-written goes and no process stays, with a line and
    the exit status `STOPPED` (Ctrl-C: 130).
    """

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
            if processes()[0] == 0:
                print(
                    f"interrupted{f' by {stop}' if str(stop) else ''}: finished outputs stay usable; "
                    "run the same command again to go on",
                    file=sys.stderr,
                )
            sys.exit(STOPPED if isinstance(stop, Stopped) else 130)
        except Exception as error:
            print(f"error: {unforeseen(error, Path(sys.argv[0]).name)}", file=sys.stderr)
        sys.exit(2)

    return run
