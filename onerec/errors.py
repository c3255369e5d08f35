"""What bad input gets: one line on standard error, exit status 2, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class InputError(Exception):
    """Input that the program cannot use.

    ``InputError(file, what, right)`` prints as ``error: <file>: <what>; <right>``: the file (or flag, or
    folder) at fault, what is wrong with it, and what would be right.
    """

    def __init__(self, file: object, what: str, right: str) -> None:
        self.file, self.what, self.right = str(file), what, right
        text = f"{file}: {what}; {right}"
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: ascii(c[0])[1:-1], text))

    def __reduce__(self) -> tuple:
        return type(self), (self.file, self.what, self.right)


def unforeseen(error: Exception, doing: str) -> InputError:
    """An `InputError` for an exception that was not foreseen; it names a file that holds the traceback."""
    place = "which cannot be written"
    with contextlib.suppress(OSError):
        handle, place = tempfile.mkstemp(prefix="onerec-traceback-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")
    right = "needs more memory than there is" if isinstance(error, MemoryError) else "please report it"
    return InputError(doing, what, f"{right} (traceback: {place})")


def from_os_error(error: OSError) -> InputError:
    """An operating-system error (disk full, no permission, no such file) as `InputError`."""
    if error.errno is None:  # a library's own, not the system's
        return unforeseen(error, Path(sys.argv[0]).name)
    file = error.filename or "a file of this run"
    if error.errno in DISK_FULL:
        return InputError(file, "no space left on the device", "free some space or choose another output folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(file, "permission denied", "choose a path that this user may read and write")
    if error.errno == errno.ENOENT:
        return InputError(file, "no such file or folder", "check the path")
    return InputError(file, error.strerror or str(error), "check the path and the device")


@contextlib.contextmanager
def reading(
    file: object, what: str = "cannot be read", right: str = "write it again; it may be damaged"
) -> Iterator[None]:
    """Around the reading of a file: whatever the library raises becomes an `InputError` that names the file."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pyarrow, json, torch, tokenizers and Python itself share no base class
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        if isinstance(error, OSError) and error.errno:
            raise from_os_error(error) from error
        raise InputError(file, f"{what} ({reason(error)})", right) from error


def reason(error: BaseException) -> str:
    """What a library says of a file, on one line."""
    kind = type(error).__name__
    # torch's own words on a pickle ask to switch the check off.
    what = "a pickle of something else than tensors" if kind == "UnpicklingError" else str(error)
    return " ".join(what.partition("Traceback")[0].split())[:200] or kind
