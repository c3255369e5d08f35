"""Text by another server, vLLM's say, that holds the same weights."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from typing import Any

from benchmarks.serving.engine import Refused
from benchmarks.serving.schemas import ChatRequest
from benchmarks.serving.service import DEFAULT_TOKENS
from onerec.errors import InputError

KEY = "TEXT_SERVER_KEY"  # the environment variable of its key, where it wants one


def writer(url: str, seconds: float) -> Callable[[ChatRequest], AsyncIterator[tuple[str, Any]]]:
    """What writes text by an OpenAI-compatible server (``url`` ends in /v1), with the first model that it names.

    Raises `InputError` where the server does not answer.
    """
    import openai

    key = os.environ.get(KEY) or "none"
    try:
        with openai.OpenAI(base_url=url, api_key=key, timeout=10, max_retries=0) as once:
            model = once.models.list().data[0].id
    except (openai.OpenAIError, IndexError) as error:
        what = f"{url} names no model ({' '.join(str(error).split())[:200]})"
        raise InputError(
            "--text_server", what, "the address of a running server, as http://127.0.0.1:8001/v1"
        ) from None
    client = openai.AsyncOpenAI(base_url=url, api_key=key, timeout=seconds, max_retries=0)

    async def write(body: ChatRequest) -> AsyncIterator[tuple[str, Any]]:
        settings: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "seed": body.seed}
        tokens = body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS
        tokens += body.max_thinking_tokens if body.thinks else 0
        if body.stops:
            settings["stop"] = list(body.stops)
        try:
            stream = await client.chat.completions.create(
                model=model,
                messages=body.turns,
                stream=True,
                max_tokens=tokens,
                stream_options={"include_usage": True},
                extra_body={"chat_template_kwargs": {"enable_thinking": body.thinks}},
                **settings,
            )
            finish, read, written = "stop", 0, 0
            async with stream:
                async for chunk in stream:
                    if chunk.usage:
                        read, written = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                    for choice in chunk.choices:
                        # vLLM's name of the thinking, the newer and the older one.
                        named = (getattr(choice.delta, name, None) for name in ("reasoning", "reasoning_content"))
                        if thought := next(filter(None, named), None):
                            yield "thought", thought
                        if choice.delta.content:
                            yield "delta", choice.delta.content
                        finish = choice.finish_reason or finish
        except openai.APITimeoutError:
            raise Refused(504, f"no answer within {seconds:g} seconds") from None
        except openai.APIStatusError as error:
            status = error.status_code if error.status_code in (400, 429) else 502
            raise Refused(status, f"the text server: {error.message[:300]}") from None
        except openai.OpenAIError:
            raise Refused(502, "the text server does not answer") from None
        yield "done", (finish, read, written)

    return write
