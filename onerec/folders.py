"""One owner of outputs: a name holds a whole file or folder, replaced only where the same stage made it; one run a folder.

What is being written stands beside its place as ``.<name>.tmp-<host>-<process>-<its start>-<thread>``. What processes that are gone
left is cleared, and what they had begun to put in place together is finished, when its folder is next written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from onerec.errors import DISK_FULL, InputError

MANIFEST = "manifest.json"
LOCK = ".onerec-lock"
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_LEFT = re.compile(r"\.(.+)\.(commit|old|tmp)-([0-9a-f]{8})-(\d+)-(\d+)-\d+", re.DOTALL)
# How torch, safetensors and tokenizers say that a disk is full.
_FULL = ("space left", "quota", "PytorchStreamWriter", "inline_container", "iostream")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_cleared: set[Path] = set()
_local = threading.local()


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what libraries raise on a full disk (each its own type) into `InputError`; system errors without a file name ``path``."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        text = str(error)
        if getattr(error, "errno", None) in DISK_FULL or (
            any(word in text for word in _FULL) and "Reader" not in text
        ):
            what = "no space left on the device"
            raise InputError(path, what, "free some space or choose another output folder") from None
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], ours: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` for a file or a folder; put it in place when the block ends well, remove it otherwise.

    A folder that is there gives way only if it is empty or ``ours`` (`made_by`), and no working or home folder, no parent of one and
    no mount point; else raises `InputError` before anything is written.
    """
    given, path = path, Path(path)
    if path.name in ("", "..") or not path.is_file():
        path = path.resolve()  # a link to a folder, or to what is not there yet, stays a link
    check_output(given, ours)
    _make(path.parent)
    if path.parent not in _cleared:
        _cleared.add(path.parent)
        clear(path.parent)
    temporary, waits = _beside(path, "tmp"), False
    try:
        with disk_errors(given):
            yield temporary
            if temporary.is_dir():
                replace_folder(temporary, path)
            elif waits := getattr(_local, "pending", None) is not None:
                _local.pending[path] = temporary
            else:
                os.replace(temporary, path)
    finally:
        if not waits:
            _remove(temporary)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The files that this thread writes inside appear when the block ends well, all of them or, after an error, none.

    A kill while they are put in place leaves a note of them, by which the next run there puts the rest in place. Inside another such
    block they are part of that.
    """
    if getattr(_local, "pending", None) is not None:
        yield
        return
    _local.pending = pending = {}
    notes: dict[Path, Path] = {}
    try:
        yield
        text = json.dumps(
            [[str(new.resolve()), str(path.resolve().parent / path.name)] for path, new in pending.items()]
        )
        for path in pending:
            if path.parent not in notes:
                notes[path.parent] = _beside(path, "commit")
                with disk_errors(path):
                    notes[path.parent].write_text(text, encoding="utf-8")
        for path, new in pending.items():
            os.replace(new, path)
    finally:
        _local.pending = None
        for left in (*notes.values(), *pending.values()):
            _remove(left)


def made_by(folder: str | os.PathLike[str], stage: str) -> bool:
    """Whether ``folder`` is, with all that is in it, an output of ``stage``, by its manifest (older ones do not list the files)."""
    try:
        value = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        names = set(os.listdir(folder)) - {MANIFEST, LOCK}
        return value["stage"] == stage and names <= set(value.get("files", names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_output(given: str | os.PathLike[str], ours: bool) -> None:
    """What `atomic_path` checks of a folder that is to be replaced, for a stage that has long work to do before."""
    path = Path(given).resolve()
    if not path.is_dir():
        return
    right = "give a new folder, an empty one, or one that the same command made"
    for place, name in ((Path.cwd(), "working"), (Path(os.path.expanduser("~")).resolve(), "home")):
        if path in (place, *place.parents):
            raise InputError(given, f"is your {name} folder or holds it", right)
    if os.path.ismount(path):
        raise InputError(given, "is a mount point, which nothing can replace", "give a folder in it")
    if not ours and (names := sorted(os.listdir(path))):
        raise InputError(given, f"holds what this command did not make ({names[0]})", right)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder ``new`` in the place of ``path``, in one step where the system can; what was there goes afterwards."""
    old = _beside(path, "old")
    if path.is_dir():
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        names = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(path))
        if exchange and exchange(*names, _RENAME_EXCHANGE) == 0:
            return _remove(new)
        os.rename(path, old)
    os.rename(new, path)
    return _remove(old)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves no half of it under its name."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside := _beside(path, "tmp"))
        _remove(aside)


def clear(folder: Path) -> None:
    """Finish or remove what runs of this machine that are gone have left in ``folder``."""
    found = [match for name in os.listdir(folder) if (match := _LEFT.fullmatch(name)) and match[3] == _HOST]
    for match in sorted(found, key=lambda match: match[2]):  # commits, then old ones, then new ones
        if _alive(int(match[4]), match[5]):
            continue
        path = folder / match[0]
        with contextlib.suppress(OSError, ValueError):
            if match[2] == "commit":
                for new, place in json.loads(path.read_text(encoding="utf-8")):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(new, place)
            elif match[2] == "old" and not os.path.lexists(folder / match[1]):
                os.rename(path, folder / match[1])
        _remove(path)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], take: bool = True) -> Iterator[None]:
    """Hold ``folder`` for this run; raises `InputError` where another run has it. A run that is killed lets go at once.

    Makes the folder, and removes it where it stays empty. Of the processes of a run one is to ``take`` it.
    """
    if not take:
        yield
        return
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    _make(folder)
    lock = _lock(folder)
    try:
        clear(folder)
        yield
    finally:
        _remove(folder / LOCK)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked may hold the file open
        os.close(lock)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(folder, "is a file", "the output folder must be a folder") from None


def _lock(folder: Path) -> int:
    while True:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                os.close(lock)
                right = "wait until it has ended, or give another folder"
                raise InputError(folder, "another run is at work in it", right) from None
            return lock  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
        os.close(lock)  # it was removed by the run before


def _beside(path: Path, kind: str) -> Path:
    # Named by process and thread: two that write the same file each finish their own.
    pid, thread = os.getpid(), threading.get_ident()
    return path.with_name(f".{path.name}.{kind}-{_HOST}-{pid}-{_start(pid) or 0}-{thread}")


def _start(pid: int) -> str:
    """When a process began, so that another one with its number is told from it; empty where it is gone, or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _alive(pid: int, start: str) -> bool:
    if os.path.exists("/proc/self/stat"):
        return _start(pid) == start
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
