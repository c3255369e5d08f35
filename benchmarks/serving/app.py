"""The routes: OpenAI's two, recommendations and what a page asks beside, health and metrics."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from benchmarks.serving.engine import Refused
from benchmarks.serving.guard import Guard, error_body
from benchmarks.serving.library import Unknown
from benchmarks.serving.schemas import ChatRequest, PromptRequest, RecommendRequest
from benchmarks.serving.service import Events, Service
from onerec.errors import InputError

T = TypeVar("T")
PAGE = Path(__file__).with_name("page.html")
Text = Annotated[str, Query(max_length=300)]
Limit = Annotated[int, Query(ge=1, le=50)]


def make_app(service: Service, key: str = "", hosts: Collection[str] | None = None) -> Guard:
    """The application, behind its guard."""
    app = FastAPI(title="OneRec", docs_url=None, redoc_url=None)
    _errors(app)
    _about(app, service)
    _asking(app, service)
    routes = [route.path for route in app.routes]
    return Guard(app, service.metrics, routes, key, hosts)


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _errors(app: FastAPI) -> None:
    def said(status: int, message: str) -> Response:
        headers = {"Retry-After": "1"} if status == 429 else None
        return Response(error_body(status, message), status, headers, "application/json")

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return said(error.status, error.message)

    @app.exception_handler(Unknown)
    @app.exception_handler(InputError)
    async def unknown(request: Request, error: Exception) -> Response:
        return said(400, str(error))

    @app.exception_handler(HTTPException)
    async def status(request: Request, error: HTTPException) -> Response:
        return said(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # Without what was given: it may be large, and is no text to send back.
        found = [f"{'.'.join(map(str, one['loc']))[:100]}: {one['msg']}" for one in error.errors()[:3]]
        return said(400, "; ".join(found)[:500])

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return said(500, "the server failed; its log says where")


def _about(app: FastAPI, service: Service) -> None:
    page = PAGE.read_bytes()
    policy = _policy(page.decode("utf-8"))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
        return Response(page, 200, headers, "text/html; charset=utf-8")

    @app.get("/healthz")
    async def healthz() -> Response:
        models = {name: engine.alive for name, engine in service.engines.items()}
        well = all(models.values())
        return _json(
            {"status": "ok" if well else "a model's process has ended", "models": models}, 200 if well else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        for name, engine in service.engines.items():
            service.metrics.waiting.labels(name).set(engine.waiting)
        return Response(generate_latest(service.metrics.registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [{"id": name, "object": "model"} for name in service.models()]})

    @app.get("/v1/info")
    async def info() -> Response:
        return _json(service.info())

    @app.get("/v1/users")
    async def users(task: Text = "video", q: Text = "", limit: Limit = 20) -> Response:
        return _json({"users": service.shelf_library(task).users(task, q, limit)})

    @app.get("/v1/items/search")
    async def search(q: Text = "", task: Text = "video", limit: Limit = 10) -> Response:
        shelf = service.shelf_library(task).shelf(task)
        pids = await asyncio.to_thread(shelf.search, q, limit)
        return _json({"items": [shelf.item(pid) for pid in pids]})


def _policy(page: str) -> str:
    """Nothing from elsewhere, and no script or style but the page's own, told by their digests."""
    digests = {
        tag: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for tag, text in re.findall(r"<(script|style)>(.*?)</\1>", page, re.DOTALL)
    }
    return (
        f"default-src 'none'; script-src {digests['script']}; style-src {digests['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _asking(app: FastAPI, service: Service) -> None:
    @app.post("/v1/prompts")
    async def prompts(body: PromptRequest) -> Response:
        return _json(service.prompt(body))

    @app.post("/v1/recommend")
    async def recommend(body: RecommendRequest, request: Request) -> Response:
        events = service.recommend(body)
        if body.stream:
            return await _streamed(
                events, request, lambda kind, value: {"thought": value} if kind == "thought" else value
            )
        return _json((await _until_done(events, request))[-1][1])

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        model = body.model or service.first.name
        head = {"id": f"chatcmpl-{uuid.uuid4().hex[:12]}", "created": int(time.time()), "model": model}
        events = service.chat(body)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await _streamed(events, request, lambda kind, value: _chunk(head, kind, value, usage), "[DONE]")
        said = await _until_done(events, request)
        texts = {name: "".join(text for kind, text in said if kind == name) for name in ("thought", "delta")}
        finish, *tokens = said[-1][1]
        message = {
            "role": "assistant",
            "content": texts["delta"],
            "reasoning_content": texts["thought"].strip() or None,
        }
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return _json(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(*tokens)})


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _chunk(head: dict[str, Any], kind: str, value: Any, usage: bool) -> dict[str, Any]:
    """A piece of a streamed chat, as OpenAI has it; ``reasoning_content`` is the thinking, as vLLM has it."""
    delta = {"thought": {"reasoning_content": value}, "delta": {"content": value}}.get(kind, {})
    choice = {"index": 0, "delta": {"role": "assistant"} | delta, "finish_reason": value[0] if kind == "done" else None}
    chunk = head | {"object": "chat.completion.chunk", "choices": [choice]}
    return chunk | ({"usage": _usage(*value[1:])} if usage and kind == "done" else {})


async def _until_done(events: Events, request: Request) -> list[tuple[str, Any]]:
    """All that is said."""

    async def collected() -> list[tuple[str, Any]]:
        async with contextlib.aclosing(events) as said:
            return [one async for one in said]

    return await _while_connected(collected(), request)


async def _while_connected(answer: Awaitable[T], request: Request) -> T:
    """What ``answer`` gives; nobody works for a connection that has ended."""
    work, gone = asyncio.ensure_future(answer), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Refused(499, "the connection has ended")
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()


async def _streamed(events: Events, request: Request, shown: Any, last: str = "") -> Response:
    """Server-sent events. What is wrong before the first of them has its own status; later it is an event."""
    first = await _while_connected(anext(events), request)

    async def lines() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(events) as rest:
            yield b"data: " + orjson.dumps(shown(*first)) + b"\n\n"
            try:
                async for one in rest:
                    yield b"data: " + orjson.dumps(shown(*one)) + b"\n\n"
            except Refused as error:
                yield b"data: " + error_body(error.status, error.message) + b"\n\n"
        if last:
            yield f"data: {last}\n\n".encode()

    return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
