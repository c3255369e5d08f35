"""One owner of outputs: a name holds a whole file or folder, replaced only by the stage that made it; one run a folder.

What is being written lies beside its place as ``.<name>.tmp-<host>-<process>-<its start>-<thread>``. What dead
processes left is removed, or finished where they had begun to put it in place, when its folder is next written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from onerec.errors import DISK_FULL, InputError, from_os_error

MANIFEST = "manifest.json"
LOCK = ".onerec-lock"
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_LEFT = re.compile(r"\.(.+)\.(commit|old|tmp)-([0-9a-f]{8})-(\d+)-(\d+)-\d+", re.DOTALL)
# How torch, safetensors and tokenizers say that a disk is full.
_FULL = ("space left", "quota", "PytorchStreamWriter", "inline_container", "iostream", "requested and")
_RIGHT = "give a new folder, an empty one, or one that the same command made"
_local = threading.local()


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """What libraries raise on a full disk, each its own type, and system errors without a file become `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        full = any(word in str(error) for word in _FULL) and "Reader" not in str(error)
        if full or getattr(error, "errno", None) in DISK_FULL:
            what = "no space left on the device"
            raise InputError(path, what, "free some space or choose another output folder") from None
        if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE) and not error.filename:
            error.filename = str(path)
            raise from_os_error(error) from None
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], ours: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``, put in place when the block ends well, removed otherwise.

    A folder that is there gives way as `check_output` says, before anything is written. Folders that were made for it
    are removed with it where nothing else came into them.
    """
    check_output(path, ours)
    given, path = path, Path(path)
    if path.name in ("", "..") or not path.is_file():
        path = path.resolve()  # a link to a folder, or to what is not there yet, stays a link
    made = _missing(path.parent)
    _make(path.parent)
    _clear_once(path.parent)
    temporary, waits = _beside(path, "tmp"), False
    try:
        with disk_errors(given):
            yield temporary
            if temporary.is_dir():
                replace_folder(temporary, path)
            elif waits := getattr(_local, "pending", None) is not None:
                _local.pending[path] = temporary
                _local.made += made
            else:
                os.replace(temporary, path)
    finally:
        if not waits:
            _remove(temporary)
            _remove_empty(made)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The files that this thread writes inside appear together, when the outermost such block ends well.

    A kill or a signal while they are put in place leaves a note of them, by which `clear` puts the rest in place.
    """
    if getattr(_local, "pending", None) is not None:
        yield
        return
    _local.pending, _local.made = {}, []
    pending, made = _local.pending, _local.made
    notes: dict[Path, Path] = {}
    try:
        yield
        text = json.dumps([[str(new.absolute()), str(path.absolute())] for path, new in pending.items()])
        for path in pending:
            with disk_errors(path):
                notes.setdefault(path.parent, _beside(path, "commit")).write_text(text, encoding="utf-8")
    except BaseException:
        for left in (*notes.values(), *pending.values()):
            _remove(left)
        _remove_empty(made)
        raise
    finally:
        _local.pending = None
    for path, new in pending.items():
        os.replace(new, path)
    for note in notes.values():
        _remove(note)


def made_by(folder: str | os.PathLike[str], stage: str) -> bool:
    """Whether all of ``folder`` is an output of ``stage``, by its manifest (older ones do not list the files)."""
    try:
        value = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
        names = set(os.listdir(folder)) - {MANIFEST}
        return value["stage"] == stage and names <= set(value.get("files", names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_output(path: str | os.PathLike[str], ours: bool) -> None:
    """Raise `InputError` where ``path`` is a folder that may not be replaced.

    It may if it is empty or ``ours`` (`made_by`), and no working or home folder, no parent of one and no mount point.
    """
    place = Path(path).resolve()
    if not place.is_dir():
        return
    for kept in (Path.cwd(), Path(os.path.expanduser("~")).resolve()):
        if place in (kept, *kept.parents):
            raise InputError(path, "is your working or home folder, or holds it", _RIGHT)
    if os.path.ismount(place):
        raise InputError(path, "is a mount point, which nothing can replace", "give a folder in it")
    if not ours and (names := sorted(os.listdir(place))):
        raise InputError(path, f"holds what this command did not make ({names[0]})", _RIGHT)


def replace_folder(new: Path, path: Path) -> None:
    """Put the folder ``new`` in the place of ``path``, in one step where the system can."""
    old = _beside(path, "old")
    if path.is_dir():
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        # Paths from the working folder (AT_FDCWD, -100), RENAME_EXCHANGE (2).
        if exchange and exchange(-100, os.fsencode(new), -100, os.fsencode(path), 2) == 0:
            return _remove(new)
        os.rename(path, old)
    os.rename(new, path)
    return _remove(old)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a kill leaves no half of it under its name."""
    aside = _beside(path, "tmp")
    _remove(aside)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
    _remove(aside)


def clear(folder: Path) -> bool:
    """Finish or remove what dead runs of this machine have left in ``folder``; whether files were put in place."""
    found = [match for match in map(_LEFT.fullmatch, os.listdir(folder)) if match and match[3] == _HOST]
    dead = [match for match in found if match[5] not in ("0", _start(int(match[4])))]
    for match in sorted(dead, key=lambda match: match[2]):  # notes, then old ones, then new ones
        path = folder / match[0]
        with contextlib.suppress(OSError, ValueError):
            if match[2] == "commit":
                for new, place in json.loads(path.read_text(encoding="utf-8")):
                    if os.path.exists(new):
                        os.replace(new, place)
            elif match[2] == "old" and not os.path.lexists(folder / match[1]):
                os.rename(path, folder / match[1])
        _remove(path)
    return any(match[2] == "commit" for match in dead)


_clear_once = functools.cache(clear)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], take: bool = True) -> Iterator[None]:
    """Hold ``folder`` for this run; raises `InputError` where another run has it. A run that is killed lets go at once.

    Makes the folder, and removes it where it stays empty. Of the processes of a run one is to ``take`` it.
    """
    if not take:
        yield
        return
    folder = Path(folder)
    made = _missing(folder)
    lock = _lock(folder)
    try:
        clear(folder)
        yield
    finally:
        _remove(folder / LOCK)
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # a process that was forked may hold the file open
        os.close(lock)
        _remove_empty(made)


def _lock(folder: Path) -> int:
    while True:
        _make(folder)
        with contextlib.suppress(FileNotFoundError):  # the run before has removed it; once more
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                what = "another run is at work in it"
                raise InputError(folder, what, "wait until it has ended, or give another folder") from None
            except OSError:  # a file system without locks
                return lock
            if os.path.samestat(os.fstat(lock), os.stat(folder / LOCK)):
                return lock
            os.close(lock)


def _missing(folder: Path) -> list[Path]:
    """Of a folder and its parents those that are not there, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those that hold nothing, the innermost first."""
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(folder, "is a file", "the output folder must be a folder") from None


def _beside(path: Path, kind: str) -> Path:
    # Named by process and thread: two that write the same file each finish their own.
    pid, thread = os.getpid(), threading.get_ident()
    return path.with_name(f".{path.name}.{kind}-{_HOST}-{pid}-{_start(pid)}-{thread}")


def _start(pid: int) -> str:
    """When a process began, which tells it from another of its number; 0 where it is gone or there is no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return "0" if fields[0] in "ZX" else fields[19]
    return "0"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
