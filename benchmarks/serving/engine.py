"""The HTTP side's end of a model's processes: a bound on what is asked, time limits, replicas, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import multiprocessing
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks.serving.worker import Chat, Rank, Settings, run
from onerec.errors import InputError


class Refused(Exception):
    """A question that gets no answer: the HTTP status and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Replica:
    """A process with a copy of the model, or a thread of this one that speaks as it does (``start`` of the tests).

    ``begin`` starts it with one end of a connection and gives what can be joined.
    """

    def __init__(self, begin: Callable[[Any], Any]) -> None:
        self.connection, other = multiprocessing.get_context("spawn").Pipe()
        self.process = begin(other)
        if isinstance(self.process, multiprocessing.process.BaseProcess):
            other.close()  # so that this end sees when the process is gone
        self.tickets: dict[int, asyncio.Queue] = {}
        self.alive, self.facts = True, {}
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def ready(self) -> None:
        """Wait until it has loaded; raises `InputError` where it cannot."""
        try:
            kind, value = await asyncio.to_thread(self.connection.recv)
        except (EOFError, OSError):
            raise InputError("the model's process", "has ended while it loaded", "its last lines above") from None
        if kind == "failed":
            raise InputError(*value)
        self.facts = value
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()
        threading.Thread(target=self._write, daemon=True).start()

    def ask(self, *message: Any) -> None:
        """Send a message; never waits."""
        self._outbox.put(message)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (message := self._outbox.get()) is not None:
                self.connection.send(message)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(EOFError, OSError, RuntimeError):  # RuntimeError: the loop has been closed
            while True:
                loop.call_soon_threadsafe(self._deliver, self.connection.recv())
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end)

    def _deliver(self, messages: list[tuple[int, str, Any]]) -> None:
        for id, kind, value in messages:
            if (ticket := self.tickets.get(id)) is not None:  # else whoever asked is gone
                ticket.put_nowait((kind, value))

    def _end(self) -> None:
        self.alive = False
        for ticket in self.tickets.values():
            ticket.put_nowait(("error", (503, "the model's process has ended")))

    def close(self, seconds: float = 10.0) -> None:
        """End it, in good order where it still listens."""
        self.ask("stop")
        self.ask_no_more()
        self.process.join(seconds if self.facts else 0)  # one that still loads does not listen
        if self.process.is_alive() and hasattr(self.process, "kill"):
            self.process.kill()
            self.process.join()

    def ask_no_more(self) -> None:
        self._outbox.put(None)


class Engine:
    """A model by its name, in one process or several. ``limit`` bounds the questions that wait or are at work."""

    def __init__(self, name: str, limit: int, seconds: float) -> None:
        self.name, self.limit, self.seconds = name, limit, seconds
        self.replicas: list[Replica] = []
        self.batches = lambda size: None  # told the size of the batch that each answer was in
        self._ids = itertools.count()

    def start(self, settings: Settings, replicas: int = 1) -> None:
        """Start the processes."""
        context = multiprocessing.get_context("spawn")

        def begin(place: int) -> Callable[[Any], Any]:
            own = dataclasses.replace(settings, place=place)

            def process(connection: Any) -> Any:
                started = context.Process(target=run, args=(connection, own), daemon=True, name=self.name)
                started.start()
                return started

            return process

        self.replicas = [Replica(begin(place)) for place in range(replicas)]

    async def ready(self) -> None:
        """Wait until all have loaded."""
        await asyncio.gather(*(replica.ready() for replica in self.replicas))

    @property
    def facts(self) -> dict[str, Any]:
        """What the model is: ``context`` tokens, whether it has ``sids`` and ``ranks``."""
        return self.replicas[0].facts

    @property
    def alive(self) -> bool:
        return any(replica.alive for replica in self.replicas)

    @property
    def waiting(self) -> int:
        """Questions that wait or are at work."""
        return sum(len(replica.tickets) for replica in self.replicas)

    async def said(self, job: Rank | Chat) -> AsyncIterator[tuple[str, Any]]:
        """What comes back for a job: (kind, value) up to ``done``.

        Raises `Refused`: 429 where too many wait, 503 where the process is gone, 504 after the time limit, and what
        the model's process says. Whoever stops listening ends the work.
        """
        replicas = [replica for replica in self.replicas if replica.alive]
        if not replicas:
            raise Refused(503, "the model's process has ended")
        if self.waiting >= self.limit:
            raise Refused(429, f"{self.limit} questions wait already; ask again in a moment")
        replica = min(replicas, key=lambda one: len(one.tickets))
        id, ticket = next(self._ids), asyncio.Queue()
        replica.tickets[id] = ticket
        end, finished = time.monotonic() + self.seconds, False
        replica.ask("text" if isinstance(job, Chat) else "rank", id, job)
        try:
            while not finished:
                try:
                    kind, value = await asyncio.wait_for(ticket.get(), max(0.0, end - time.monotonic()))
                except asyncio.TimeoutError:
                    raise Refused(504, f"no answer within {self.seconds:g} seconds") from None
                finished = kind in ("done", "error")
                if kind == "error":
                    raise Refused(*value)
                yield kind, value
        finally:
            del replica.tickets[id]
            if not finished:
                replica.ask("cancel", id)

    async def rank(self, job: Rank) -> AsyncIterator[tuple[str, Any]]:
        """As `said`; the last value is a `Ranked`."""
        async with contextlib.aclosing(self.said(job)) as said:
            async for kind, value in said:
                if kind == "done":
                    value, size = value
                    self.batches(size)
                yield kind, value

    def close(self) -> None:
        """End the processes."""
        for replica in self.replicas:
            replica.close()
