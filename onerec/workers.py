"""Work in several processes, of this machine or of a Ray cluster, that end when this one ends, however it ends."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from onerec.errors import InputError
from onerec.flags import LOCAL, RAY

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    begin: Callable[..., None] | None = None,
    arguments: tuple = (),
    runner: str = LOCAL,
) -> Iterator[Result]:
    """``function`` of every item, in order, by ``workers`` processes that are started afresh (safe beside threads).

    ``begin(*arguments)`` runs first in each. At most two items a worker are on their way. An exception, here or where
    the results are used, ends the work at once. ``runner``: "local" raises `InputError` where a worker is killed, and
    where the system has no room for their semaphores (/dev/shm is full or not to be written), or ``workers`` is None
    or 1, this process does the work. "ray" has tasks of a cluster do it (`onerec.distributed.tasks`).
    """
    if runner == RAY:
        from onerec.distributed.tasks import map_on_ray

        yield from map_on_ray(function, items, workers, begin, arguments)
        return
    if workers in (None, 1):
        if begin:
            begin(*arguments)
        yield from map(function, items)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    try:
        pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(begin, arguments))
    except OSError as error:
        print(f"one process instead of {workers}: no semaphores ({error.strerror})", file=sys.stderr, flush=True)
        if begin:
            begin(*arguments)
        yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            what = "died (killed from outside, or out of memory)"
            raise InputError("a worker process", what, "fewer workers, or more memory") from None
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(begin: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if begin:
        begin(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
