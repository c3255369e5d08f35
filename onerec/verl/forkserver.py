"""Ray's workers on a machine without GPUs, as forks of one process that has imported verl.

A verl run has a dozen Ray workers, and each would import torch, transformers and verl: 10 to 20 s of processor time, on
a laptop more than a small model's training. So `onerec.verl.launch` has Ray run its workers by this file (`executable`,
a runtime environment's ``py_executable``). It asks the fork server of its raylet, which the first of them starts, for a
fork that goes on as the worker, and stays as its stand-in: it ends with the worker's status, and the worker ends where
the stand-in is killed. Without a server (its imports fail) the worker starts as usual.

A server ends with its raylet, or when it has had no fork for `_IDLE` seconds. It runs in the environment of a worker,
since Ray reads much of its own when it is imported. Linux only. multiprocessing's fork server is the same idea, for
functions of one program.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys

_IDLE = 5.0
# Read when something is imported: workers that differ in one of these do not share a server.
_AT_IMPORT = ("PYTHONPATH", "VERL_USE_EXTERNAL_MODULES", "VERL_PLATFORM", "OMP_NUM_THREADS")
_LENGTH = struct.Struct("!I")
_STANDARD = (0, 1, 2)
_THERE = b"\1"


def possible() -> bool:
    """Whether this system has what a server needs: Linux 5.3 or later."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def executable(modules: str) -> str:
    """Ray's ``py_executable`` whose workers are forks of a process that has imported ``modules`` (``a.b,c``)."""
    return shlex.join([sys.executable, "-I", "-S", os.path.abspath(__file__), modules])


def _stand_in(modules: str, arguments: list[str]) -> int:
    """Have ``arguments``, a script and its own, run by a fork; its exit status."""
    key = "\0".join([sys.executable, modules, *(os.environ.get(name, "") for name in _AT_IMPORT)])
    (raylet,) = (text.partition("=")[2] for text in arguments if text.startswith("--raylet-name="))
    # Beside the raylet's socket and no longer than that, since such a path has a limit.
    path = os.path.join(os.path.dirname(raylet), "f" + hashlib.sha256(key.encode()).hexdigest()[:5])
    what = ""
    try:
        with _connected(path, modules) as connection:
            request = json.dumps([arguments, dict(os.environ), os.getcwd()]).encode()
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", _STANDARD))
            connection.sendmsg([_LENGTH.pack(len(request))], [rights])
            connection.sendall(request)
            if connection.recv(1) == _THERE:
                answer = connection.recv(_LENGTH.size)
                return _LENGTH.unpack(answer)[0] if len(answer) == _LENGTH.size else 1
    except OSError as error:
        what = str(error)
    with contextlib.suppress(OSError), open(f"{path}.log", errors="replace") as log:
        what = (log.read().splitlines() or [what])[-1]  # its imports failed
    print(f"warning: no fork server ({what or 'it was killed'}): this worker imports verl itself", file=sys.stderr)
    os.execv(sys.executable, [sys.executable, *arguments])


def _connected(path: str, modules: str) -> socket.socket:
    """A connection to the server at ``path``, which is started where none is; raises `OSError` where that fails.

    The server's socket is there before its imports are: where they take longer than Ray lets a worker start, the
    workers that Ray starts in the place of those that it killed find the same server, not one more that begins anew.
    """
    with open(f"{path}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            connection.connect(path)
            return connection
        with _listening(path) as listener, open(f"{path}.log", "w") as log:
            number = listener.fileno()
            # Not with -I: its forks start processes that inherit its flags.
            command = [sys.executable, os.path.abspath(__file__), "--serve", path, str(os.getppid()), modules]
            files = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "pass_fds": [number]}
            subprocess.Popen([*command, str(number)], **files, start_new_session=True)
        connection.connect(path)
        return connection


def _listening(path: str) -> socket.socket:
    """A socket at ``path`` that nobody else's processes can connect to; one that was left there is gone."""
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    before = os.umask(0o177)
    listener.bind(path)
    os.umask(before)
    listener.listen(64)
    return listener


class _Server:
    """Forks a process for every stand-in that connects to ``listener``, bound to ``path``, while ``raylet`` lives."""

    def __init__(self, path: str, listener: socket.socket, raylet: int) -> None:
        self._path, self._listener, self._raylet = path, listener, os.pidfd_open(raylet)
        self._processes: dict[int, tuple[int, socket.socket]] = {}  # by pidfd: the process and its stand-in

    def run(self) -> tuple[bytes, list[int]] | None:
        """Returns None when all is over, and in a fork what its stand-in asked for (`_asked`)."""
        while True:
            stand_ins = {connection.fileno(): fd for fd, (_, connection) in self._processes.items()}
            waiting = [self._listener.fileno(), self._raylet, *self._processes, *stand_ins]
            ready = select.select(waiting, [], [], None if self._processes else _IDLE)[0]
            if not ready or self._raylet in ready:
                break
            for fd in filter(stand_ins.__contains__, ready):
                # A stand-in says nothing more: it is gone.
                signal.pidfd_send_signal(stand_ins[fd], signal.SIGKILL)
            for fd in filter(self._processes.__contains__, ready):
                self._end(fd)
            if self._listener.fileno() in ready and (asked := self._accept()):
                return asked
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for fd in self._processes:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        return None

    def _end(self, fd: int) -> None:
        """Tell the stand-in the status of its process, which has ended."""
        pid, connection = self._processes.pop(fd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError):
            connection.sendall(_LENGTH.pack(status if status >= 0 else 128 - status))
        connection.close()
        os.close(fd)

    def _accept(self) -> tuple[bytes, list[int]] | None:
        """Fork for who connects; what it asked for in the fork, None here."""
        connection = self._listener.accept()[0]
        if (asked := _asked(connection)) is None:
            connection.close()
            return None
        if pid := os.fork():
            self._processes[os.pidfd_open(pid)] = pid, connection
            for fd in asked[1]:
                os.close(fd)
            with contextlib.suppress(OSError):
                connection.sendall(_THERE)
            return None
        for fd in (self._raylet, *self._processes):
            os.close(fd)
        for one in (self._listener, connection, *(other for _, other in self._processes.values())):
            one.close()
        return asked


def _asked(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    """What a stand-in asks for, and its standard files; None where it is gone."""
    connection.settimeout(10)
    standard: list[int] = []
    try:
        header, standard, _, _ = socket.recv_fds(connection, _LENGTH.size, len(_STANDARD))
        (left,) = _LENGTH.unpack(header)
        request = b""
        while len(request) < left:
            part = connection.recv(left - len(request))
            if not part:
                raise OSError
            request += part
    except (OSError, struct.error):
        for fd in standard:
            os.close(fd)
        return None
    connection.settimeout(None)
    return request, standard


def _become(arguments: list[str], environment: dict[str, str], folder: str, standard: list[int]) -> None:
    """Go on as ``python <arguments>`` in this environment and folder, with these standard files."""
    os.setsid()
    for fd, target in zip(standard, _STANDARD, strict=True):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # all forks would draw the same; Python's own generator sees to it itself
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")


def _serve(path: str, raylet: int, modules: str, listener: int) -> None:
    """The server at ``path``, whose socket is the file ``listener``, and in each fork the worker."""
    sys.path.pop(0)  # this file's folder: its neighbours are not top-level modules
    os.set_inheritable(listener, False)
    server = _Server(path, socket.socket(fileno=listener), raylet)
    before = dict(os.environ)
    for module in modules.split(","):
        importlib.import_module(module)
    imported = {name: value for name, value in os.environ.items() if before.get(name) != value}
    gc.collect()
    gc.freeze()  # so that a collection in a fork does not copy what all share
    if asked := server.run():
        arguments, environment, folder = json.loads(asked[0])
        # What the imports have set stays set. It comes last: the C library knows the order, and setproctitle finds a
        # process's title (by it vLLM's engines are known) beside the first variable, if nobody has set that anew.
        new = {name: value for name, value in imported.items() if name not in environment}
        _become(arguments, environment | new, folder, asked[1])


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        _serve(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        sys.exit(_stand_in(sys.argv[1], sys.argv[2:]))
