"""What every request passes: whose it is, how large, how long it may take to arrive; and what is counted of it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection
from typing import Any

import orjson
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from benchmarks.serving.schemas import MOST_BODY

BODY_SECONDS = 15.0  # that a body may take to arrive
OPEN = ("/", "/healthz")  # without a key: the page holds no data, and asks for it
_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        said: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("onerec_requests", "Answers by route and status", ["route", "status"], **said)
        self.seconds = Histogram("onerec_request_seconds", "From a request's first byte to its last", ["route"], **said)
        self.waiting = Gauge("onerec_waiting", "Questions that wait or are at work", ["model"], **said)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batch = Histogram("onerec_batch_size", "Questions ranked together", ["model"], buckets=sizes, **said)
        self.tokens = Counter("onerec_tokens", "Tokens read and written", ["kind"], **said)


def error_body(status: int, message: str) -> bytes:
    """An error as OpenAI's clients read it."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})


class Guard:
    """ASGI middleware around ``app``. ``hosts``: names by which it may be called (any where None), so that a page from
    elsewhere cannot reach a server that listens to this machine alone; ``key``: what a request must bring, where set.
    """

    def __init__(
        self, app: Any, metrics: Metrics, routes: Collection[str], key: str = "", hosts: Collection[str] | None = None
    ) -> None:
        self.app, self.metrics, self.routes, self.key, self.hosts = app, metrics, set(routes), key, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        route = scope["path"] if scope["path"] in self.routes else "other"
        status, start = 0, time.perf_counter()

        async def sending(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            wrong = self._refused(scope)
            body = b""
            if wrong is None and scope["method"] in ("POST", "PUT", "PATCH"):
                wrong, body = await _body(scope, receive)
            if wrong == (0, ""):
                return None  # whoever asked is gone
            if wrong is not None:
                return await _refuse(sending, *wrong)
            await self.app(scope, _replayed(body, receive), sending)
        finally:
            self.metrics.requests.labels(route, str(status or 499)).inc()  # 499: nobody was there for an answer
            self.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def _refused(self, scope: Any) -> tuple[int, str] | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name not in self.hosts:
            return 421, "this server answers by the names of its own machine alone; --host and a key open it to others"
        if self.key and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not secrets.compare_digest(given, self.key.encode()):
                return 401, "the key is missing or wrong; Authorization: Bearer <key>"
        return None


async def _body(scope: Any, receive: Any) -> tuple[tuple[int, str] | None, bytes]:
    """(what is wrong or None, the body); (0, "") where the connection ended."""
    headers = dict(scope["headers"])
    if not headers.get(b"content-type", b"").lower().startswith(b"application/json"):
        return (415, "the body is no JSON; Content-Type: application/json"), b""
    too_large = (413, f"the body has more than {MOST_BODY:,} bytes")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > MOST_BODY:
        return too_large, b""
    parts, size, end = [], 0, time.monotonic() + BODY_SECONDS
    while True:
        try:
            message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
        except asyncio.TimeoutError:
            return (408, f"the body has not arrived within {BODY_SECONDS:g} seconds"), b""
        if message["type"] == "http.disconnect":
            return (0, ""), b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BODY:
            return too_large, b""
        if not message.get("more_body"):
            return None, b"".join(parts)


def _replayed(body: bytes, receive: Any) -> Any:
    """``receive`` of an application, which gives the body once and then what else comes: the end."""
    given = False

    async def again() -> Any:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _refuse(send: Any, status: int, message: str) -> None:
    body = error_body(status, message)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # What is left of a body that was not read to its end is not to be taken for the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
