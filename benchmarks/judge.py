"""A judge: a language model behind an OpenAI-compatible endpoint that reads answers and scores them.

Requests run side by side up to a limit, are tried again with growing delays where the endpoint is busy or broken, and
every answer is kept on disk by the content of its question, so that a second run costs nothing. An answer that does not
parse is asked for again; what then still has no verdict is counted and stays unscored.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from onerec.errors import InputError
from onerec.flags import COUNT, NOT_NEGATIVE, PROCESSES, integer, number
from onerec.render import split_thinking
from onerec.run import progress, read_json, write_json

T = TypeVar("T")
S = TypeVar("S")
CONFIGS = Path(__file__).with_name("judges")
# Characters of an answer that may hold a verdict; reading it takes their square.
_LONGEST = 1 << 17
_OPENS = re.compile(r'\{(?=\s*["}])|\[')  # where JSON's objects and arrays may begin
_RANGES = {"max_tokens": COUNT, "concurrency": PROCESSES, "timeout_s": number(0, 10**6, open_low=True)}
_RANGES |= {"max_attempts": integer(1, 1000), "ask_again": integer(0, 1000)}
_NUMBERS = ("temperature", "backoff_s", "backoff_max_s", "price_prompt", "price_completion")
_RANGES |= dict.fromkeys(_NUMBERS, NOT_NEGATIVE)
_RETRIED_STATUS = {408, 409, 425, 429}


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """An endpoint, a model and how to ask it; a JSON file of these names (see ``judges/``).

    ``api_key_env`` is the environment variable that holds the key (None: the endpoint wants none). ``max_attempts``
    requests are made where the endpoint fails, ``backoff_s`` · 2^n apart (at most ``backoff_max_s``, a little at
    random); ``ask_again`` is how often an answer that does not parse is asked for again. Prices are US dollars for a
    million tokens. ``extra_body`` goes into the request as it is.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 2048
    concurrency: int = 8
    timeout_s: float = 120.0
    max_attempts: int = 6
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0
    ask_again: int = 2
    price_prompt: float = 0.0
    price_completion: float = 0.0
    extra_body: dict[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def load(name: str) -> JudgeConfig:
        """Read ``judges/<name>.json``, or the file of that path."""
        path = CONFIGS / f"{name}.json" if (CONFIGS / f"{name}.json").exists() else Path(name)
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.json")))
            raise InputError("--judge", f"{name} is no judge and no file", f"{known}, or a JSON file like theirs")
        value = read_json(path)
        names = {field.name for field in dataclasses.fields(JudgeConfig)}
        if not isinstance(value, dict) or {"base_url", "model"} - set(value):
            raise InputError(path, "is no judge", "an object with base_url and model")
        if unknown := set(value) - names - {"_"}:
            raise InputError(path, f"has unknown {', '.join(sorted(unknown))}", f"of {', '.join(sorted(names))}")
        kinds = {"base_url": str, "model": str, "api_key_env": str | None, "extra_body": dict}
        for key, item in value.items():
            if key in _RANGES and (key, item) != ("temperature", None):
                _RANGES[key].of(item, path, key)
            elif not isinstance(item, kinds.get(key, object)):
                raise InputError(path, f"{key} is {str(item)[:100]}", "text; extra_body: an object")
        config = JudgeConfig(**{key: item for key, item in value.items() if key != "_"})
        if config.api_key_env and not os.environ.get(config.api_key_env):
            what = f"takes its key from {config.api_key_env}, which is not set"
            raise InputError(path, what, "export it, or leave out --judge")
        return config


@dataclasses.dataclass(frozen=True)
class Verdict(Generic[T]):
    """What the judge said, or why there is nothing: one of ``value`` and ``problem`` is None."""

    value: T | None
    problem: str | None = None


class Failure(Exception):
    """A request that brought no answer, with a short reason fit to be counted."""


class Judge:
    """The client. Safe to use from many threads."""

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        import openai

        self.config, self.cache = config, cache
        key = os.environ.get(config.api_key_env, "") if config.api_key_env else "none"
        self._client = openai.AsyncOpenAI(
            base_url=config.base_url, api_key=key, timeout=config.timeout_s, max_retries=0
        )
        # Requests run in a loop of their own, where one that takes too long as a whole can be ended.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._lock = threading.Lock()
        self._random = random.Random(0)
        self._counts: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()

    def check(self) -> None:
        """Ask one word, before anything long begins; raises `InputError` where the endpoint does not answer."""
        try:
            self._request([{"role": "user", "content": "请回答：好"}])
        except Failure as failure:
            what = f"the judge {self.config.model} does not answer ({failure})"
            raise InputError(self.config.base_url, what, "check base_url, model and key of the judge") from None

    def ask(self, prompt: str, parse: Callable[[str], T]) -> Verdict[T]:
        """The judge's answer to ``prompt`` through ``parse``, which raises ValueError on what it cannot use."""
        problem = ""
        for attempt in range(1 + self.config.ask_again):
            try:
                text = self._answer(prompt, attempt)
            except Failure as failure:
                problem = str(failure)
                break
            try:
                return Verdict(parse(text))
            except Exception:  # a free-form answer may break the parser in any way
                problem = "answer does not parse"
                self._count(unparsed=1)
        with self._lock:
            self._problems[problem] += 1
        return Verdict(None, problem)

    def map(self, work: Callable[[S], T], items: Sequence[S], label: str) -> list[T]:
        """``work`` of every item, ``concurrency`` at a time, in the items' order."""
        pool = concurrent.futures.ThreadPoolExecutor(self.config.concurrency)
        try:
            futures = {pool.submit(work, item): i for i, item in enumerate(items)}
            done = concurrent.futures.as_completed(futures)
            for future in progress(done, label, len(items), "sample"):
                future.result()
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def report(self) -> dict[str, Any]:
        """Calls, cached answers, retries, tokens, US dollars and what failed, by reason."""
        counts = self._counts
        cost = counts["prompt_tokens"] * self.config.price_prompt
        cost += counts["completion_tokens"] * self.config.price_completion
        names = ("calls", "cached", "retries", "unparsed", "prompt_tokens", "completion_tokens")
        return {
            "model": self.config.model,
            "base_url": self.config.base_url,
            **{name: counts[name] for name in names},
            "usd": round(cost / 1e6, 6),
            "failures": dict(self._problems.most_common()),
        }

    def _count(self, **values: int) -> None:
        with self._lock:
            self._counts.update(values)

    def _answer(self, prompt: str, attempt: int) -> str:
        """The text of the answer, from the cache where it is there; ``attempt`` tells repeated questions apart."""
        # Half a surrogate pair cannot be sent.
        messages = [{"role": "user", "content": prompt.encode(errors="replace").decode()}]
        c = self.config
        asked = [c.base_url, c.model, c.temperature, c.max_tokens, c.extra_body, messages, attempt]
        key = hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        with contextlib.suppress(InputError, LookupError, TypeError):  # not there, or damaged: asked (again)
            answer = read_json(path)["answer"] + ""
            self._count(cached=1)
            return answer
        answer, usage = self._request(messages)
        kept = {"model": c.model, "messages": messages, "attempt": attempt, "answer": answer, "usage": usage}
        write_json(path, kept)
        return answer

    def _request(self, messages: list[dict[str, str]]) -> tuple[str, dict[str, int]]:
        """One answer from the endpoint (text without thinking, token counts); raises `Failure` in the end."""
        c = self.config
        asked = {"model": c.model, "messages": messages, "max_tokens": c.max_tokens, "extra_body": c.extra_body or None}
        asked |= {} if c.temperature is None else {"temperature": c.temperature}
        failure = Failure("no attempt")
        for attempt in range(c.max_attempts):
            if attempt:
                self._count(retries=1)
                self._wait(attempt, failure)
            self._count(calls=1)
            try:
                whole = asyncio.wait_for(self._client.chat.completions.create(**asked), c.timeout_s)
                response = asyncio.run_coroutine_threadsafe(whole, self._loop).result()
                answer = split_thinking("" + (response.choices[0].message.content or ""))[1]
                names = ("prompt_tokens", "completion_tokens")
                tokens = {name: int(getattr(response.usage, name, 0) or 0) for name in names}
            except Exception as error:
                failure, again = _failure(error)
                if not again:
                    raise failure from error
                continue
            self._count(**tokens)
            return answer, tokens
        raise failure

    def _wait(self, attempt: int, failure: Failure) -> None:
        c = self.config
        with self._lock:
            jitter = self._random.uniform(0.5, 1.0)
        delay = jitter * c.backoff_s * 2 ** (attempt - 1)
        asked = getattr(failure, "retry_after", None)
        time.sleep(min(c.backoff_max_s, max(delay, asked or 0)))


def _failure(error: Exception) -> tuple[Failure, bool]:
    """The failure that an error of the client is, and whether it is worth trying again."""
    import openai

    if isinstance(error, openai.APITimeoutError | asyncio.TimeoutError):
        return Failure("timeout"), True
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        failure = Failure(f"HTTP {status}")
        after = error.response.headers.get("retry-after", "")
        failure.retry_after = float(after) if after.replace(".", "", 1).isdigit() else None  # type: ignore[attr-defined]
        return failure, status in _RETRIED_STATUS or status >= 500
    if isinstance(error, openai.APIConnectionError):
        return Failure("no connection"), True
    return Failure("not a chat completion"), True  # the client could not read the answer, or use the address


def parse_json(text: str) -> Any:
    """The longest JSON object or array in an answer, whatever stands around it; ValueError where there is none."""
    if len(text) > _LONGEST:
        raise ValueError("too long")
    decoder = json.JSONDecoder()
    best, longest, place = None, 0, 0
    while begin := _OPENS.search(text, place):
        found = begin.start()
        try:
            value, place = decoder.raw_decode(text, found)
        except json.JSONDecodeError:
            place = found + 1
            continue
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if place - found > longest:
            best, longest = value, place - found
    if not longest:
        raise ValueError("no JSON")
    return best
