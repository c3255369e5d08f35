"""How a script's ``main`` begins and ends: OpenOneRec's flags, errors as one line, signals, exit statuses.

The table of docs/from_openonerec.md says which of OpenOneRec's words have another name here, or none: flags (read
here), keys of dataset configs, and variables of the shell scripts (``scripts/entry.sh``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from onerec.errors import InputError, from_os_error, unforeseen
from onerec.keeper import STOP_SIGNALS, STOPPED
from onerec.run import ROOT, own_code_first, processes

TABLE = ROOT / "docs" / "from_openonerec.md"
WORKS, REFUSED, MOVED = "works", "in its place", "elsewhere"


class Stopped(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where the program stands, so that it clears up as after Ctrl-C."""


@contextlib.contextmanager
def signals_to(handler: Callable[[int, object], None], numbers: Sequence[int]) -> Iterator[None]:
    """Have ``handler(number, frame)`` called for signals, in the main thread alone; ignored ones (nohup) stay so."""
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
    """Decorate a script's ``main``: an exception becomes one line on standard error and exit status 2.

    For an unforeseen exception the line names a file with the traceback. SIGTERM, SIGHUP and Ctrl-C end it by an
    exception, so that half-written files are removed and no process is left; exit status `STOPPED` (Ctrl-C: 130).
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
        finally:
            gc.freeze()  # or the interpreter's last collections walk over all of torch, for half a second
        sys.exit(2)

    return run


@dataclasses.dataclass(frozen=True)
class Word:
    """A row: the word ``old``, its name ``new`` here (or a dash), ``how`` it is taken and ``what`` it does.

    ``scripts``: the files that the row's heading names.
    """

    scripts: tuple[str, ...]
    old: str
    new: str
    how: str
    what: str

    def refusal(self, file: str = "") -> InputError:
        """The one line of a word that has no place here; ``file``: where it stands, unless it is a flag."""
        right = self.what if self.new == "–" else f"{self.new}: {self.what}"
        return InputError(file or self.old, f"{self.old if file else ''} is OpenOneRec's".strip(), right)


def read_words() -> list[Word]:
    """Every row of the table; none where the documents are not installed."""
    words: list[Word] = []
    scripts: tuple[str, ...] = ()
    for line in TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else ():
        if line.startswith("#"):
            scripts = tuple(re.findall(r"`([^`]+)`", line))
        elif line.startswith("| `"):
            old, new, how, what = (cell.strip().replace("`", "") for cell in line.split("|")[1:5])
            words.append(Word(scripts, old, new, how, what))
    return words


def words_of(script: str) -> dict[str, Word]:
    """The words of one file, by its path from the root."""
    return {word.old: word for word in read_words() if script in word.scripts}


def translated(script: Path, arguments: Sequence[str]) -> list[str]:
    """A Python script's arguments with OpenOneRec's flags renamed.

    Raises `InputError` for one that has no place here; where there are several, a line each.
    """
    path = script.resolve()
    words = words_of(str(path.relative_to(ROOT))) if path.is_relative_to(ROOT) else {}
    taken, refused = [], []
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        word = words.get(flag) if flag.startswith("--") else None
        if word and word.how == REFUSED:
            refused.append(word.refusal())
        taken.append(word.new + sign + value if word and word.how == WORKS else argument)
    for error in refused[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if refused:
        raise refused[-1]
    return taken
