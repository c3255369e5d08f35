"""What the processes of a run tell each other before they train: who makes a folder, and whether it lives or failed.

They talk through the store of ``torch.distributed`` (torchrun's, at MASTER_ADDR), which every process reaches before
there is a process group and which needs no common file system.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onerec.errors import InputError
from onerec.run import get_logger, processes

if TYPE_CHECKING:
    from torch.distributed import Store

log = get_logger("train")
BEAT = 5.0  # seconds between two signs of life of a process that makes something
SILENCE = 120.0  # seconds without one after which it counts as dead
START = 900.0  # seconds that a process may take to begin: imports from a slow disk, a node that comes late
_MADE, _BEATS, _MARK, _KEY, _FAILED, _READY = "made/{}", "beats/{}", "mark", "key", "failed", "ready"
_ALL = "all"
_AGAIN = "see what that process says, then run the same command again"
_calls = itertools.count()


@dataclasses.dataclass
class Processes:
    """The processes of a run: ``rank`` of this one of ``world``, and ``leader``, the first of its node.

    ``store``: what all of them reach; None for a lone process.
    """

    rank: int = 0
    world: int = 1
    leader: int = 0
    store: Store | None = None

    def make_folder(self, root: Path, key: Callable[[], str], fill: Callable[[str], None]) -> str:
        """Have ``fill(name)`` make the folder ``name`` = ``key()`` under ``root``, once for all that see it.

        The first process does it, and the first of every node that does not see the first one's ``root``; there ``key``
        must give the same. Returns when every process's folder exists. Raises `InputError` on every process where one
        fails, dies or does not come.
        """
        if self.store is None:
            name = key()
            fill(name)
            return name
        with self._answered(root):
            return self._make_together(root, key, fill)

    def check_shared(self, folder: Path, found: str) -> None:
        """Raise `InputError` on every process where one has another ``folder`` than the first, or another ``found``.

        ``found``: the checkpoint in it from which this process goes on. Without this a training of several nodes would
        begin at several steps, or leave a part of its checkpoints on each node.
        """
        if self.store is None:
            return
        with self._answered(folder), self._alive(folder):
            if self.rank == 0:
                self.store.set(_KEY, found)
            mark = self._mark(folder)
            try:
                if not mark.exists():
                    what = f"process {self.rank} does not see what the first one writes there"
                    raise InputError(folder, what, "a folder on a file system that all nodes share")
                if (first := self.store.get(_KEY).decode()) != found:
                    what = f"process {self.rank} would go on from {found}, the first one from {first}"
                    raise InputError(folder, what, "run the same command again")
                self.store.add(_READY, 1)
                self._wait(folder, _ALL, lambda: self.store.add(_READY, 0) >= self.world)
            finally:
                if self.rank == 0:
                    mark.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _answered(self, root: Path) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch's store raises
            what = f"cannot be made: the run's first node does not answer ({str(error).splitlines()[0]})"
            raise InputError(root, what, _AGAIN) from None

    def _make_together(self, root: Path, key: Callable[[], str], fill: Callable[[str], None]) -> str:
        if self.rank == self.leader:
            mark = None
            try:
                with self._alive(root):
                    mark = self._mark(root)
                    if self.rank == 0 or not mark.exists():
                        self._fill(root, key, fill)
                    else:
                        self._wait_for(root, 0, _MADE.format(0))
                    self.store.set(_MADE.format(self.rank), "")
            finally:
                if self.rank == 0 and mark:
                    mark.unlink(missing_ok=True)
        else:
            self._wait_for(root, self.leader, _MADE.format(self.leader))
        self.store.add(_READY, 1)
        self._wait(root, _ALL, lambda: self.store.add(_READY, 0) >= self.world)
        return self.store.get(_KEY).decode()

    def _mark(self, root: Path) -> Path:
        """A file that the first process has under ``root`` for now: a process that sees it sees the same folder.

        One that comes when it is gone takes the folder for its own and finds there what it would make.
        """
        if self.rank:
            self._wait_for(root, 0, _MARK)
            return root / self.store.get(_MARK).decode()
        root.mkdir(parents=True, exist_ok=True)
        mark = root / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        self.store.set(_MARK, mark.name)
        return mark

    def _fill(self, root: Path, key: Callable[[], str], fill: Callable[[str], None]) -> None:
        name = key()
        if self.rank == 0:
            self.store.set(_KEY, name)
        else:
            self._wait_for(root, 0, _KEY)
            if self.store.get(_KEY).decode() != name:
                what = f"node of process {self.rank}: its data or tokenizer are others than the first node's"
                raise InputError(root, what, "copy the same files to every node")
        fill(name)

    @contextlib.contextmanager
    def _alive(self, root: Path) -> Iterator[None]:
        """Give signs of life while the block runs, and tell the others where it fails."""
        done = threading.Event()

        def beat() -> None:
            for name in (self.rank, _ALL):
                self.store.add(_BEATS.format(name), 1)

        def go_on() -> None:
            with contextlib.suppress(RuntimeError):  # the store is gone, and so is the run
                while not done.wait(BEAT):
                    beat()

        beat()  # the first before the block: one that dies at once has begun, and is not waited for as long
        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            what = f"could not be made by process {self.rank} ({type(error).__name__}: {error})"
            told = error if isinstance(error, InputError) else InputError(root, what, _AGAIN)
            with contextlib.suppress(RuntimeError):
                self.store.set(_FAILED, json.dumps([told.file, told.what, told.right]))
            raise
        finally:
            done.set()
            thread.join()

    def _wait_for(self, root: Path, whom: int, key: str) -> None:
        self._wait(root, whom, lambda: self.store.check([key]))

    def _wait(self, root: Path, whom: int | str, ready: Callable[[], bool]) -> None:
        """Return when ``ready()``; raise `InputError` where a process has failed, or ``whom`` gives no sign of life."""
        began = heard = said = time.monotonic()
        last = 0
        while True:
            if self.store.check([_FAILED]):
                raise InputError(*json.loads(self.store.get(_FAILED)))
            if ready():
                return
            beats, now = self.store.add(_BEATS.format(whom), 0), time.monotonic()
            if beats != last:
                last, heard = beats, now
            elif now - heard > (SILENCE if beats and whom != _ALL else START):
                who = "a process" if whom == _ALL else f"process {whom}"
                raise InputError(root, f"is not made: {who} gives no sign of life for {now - heard:.0f} s", _AGAIN)
            if now - said > 60:
                said = now
                log.warning(f"process {self.rank} waits for {root}, {now - began:.0f} s; it is being made")
            time.sleep(min(0.5, 0.01 + (now - began) / 10))


def run_processes() -> Processes:
    """Those of this run, by the variables that torchrun sets."""
    rank, world = processes()
    if world == 1:
        return Processes()
    from torch.distributed import PrefixStore

    # A name of its own for every call: all processes make the same calls in the same order.
    store = PrefixStore(f"onerec/{next(_calls)}", _store())
    return Processes(rank, world, rank - int(os.environ.get("LOCAL_RANK", str(rank))), store)


@functools.cache
def _store() -> Store:
    from torch.distributed import rendezvous

    return next(rendezvous("env://"))[0]
