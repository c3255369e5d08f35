"""What bad input gets: one line on standard error, exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


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


def cli(main: Callable[[], int | None]) -> Callable[[], None]:
    """Decorate a script's ``main``: `InputError` and `OSError` become the one line and exit status 2.

    Ctrl-C exits with 130 and says that finished shards stay usable.
    """
    # Both import this module.
    from onerec.openonerec import translated
    from onerec.run import own_code_first

    @functools.wraps(main)
    def run() -> None:
        try:
            own_code_first()
            sys.argv[1:] = translated(Path(sys.argv[0]), sys.argv[1:])
            sys.exit(main() or 0)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                sys.exit(141)
            print(f"error: {from_os_error(error)}", file=sys.stderr)
        except KeyboardInterrupt:
            print(
                "interrupted: finished outputs stay usable; run the same command again to go on",
                file=sys.stderr,
            )
            sys.exit(130)
        sys.exit(2)

    return run
