"""A server in this process, for the tests: the tiny model in a thread, real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from benchmarks.catalogues import BenchData
from benchmarks.serve import listening, server_of
from benchmarks.serving.engine import Engine, Replica
from benchmarks.serving.guard import Metrics
from benchmarks.serving.library import Library
from benchmarks.serving.service import Service
from benchmarks.serving.worker import work
from onerec.parquet import write_table
from onerec.records import message
from tests.benchmarks.conftest import TINY_SPEC, write_tiny_data

TITLES = [f"title {i} <b>{'red' if i % 2 else 'blue'}</b>" for i in range(16)]


def sid(pid: int) -> str:
    return TINY_SPEC.text([pid % 4, pid // 4 % 4, 0])


def write_run(folder: Path, model: Path) -> Path:
    """A run's folder with the tiny data, texts, keywords, titles and a model; the model's path."""
    data = write_tiny_data(folder / "output" / "benchmark_data")

    def rows(task: str, made: list[tuple[str, dict[str, Any]]]) -> None:
        found = [
            {"uuid": f"{task}{i}", "source": "s", "messages": json.dumps([message("user", text)]), "metadata": meta}
            for i, (text, meta) in enumerate((text, json.dumps(meta)) for text, meta in made)
        ]
        write_table(data / task / f"{task}_test.parquet", pa.Table.from_pylist(found))

    def words(user: int, pid: int) -> dict[str, Any]:
        return {"uid": user, "keyword": f"word{user}", "answer": sid(pid), "answer_pid": [pid], "history_pid": [1, 2]}

    asked = "他喜欢{}。最近看了{}、{}。\n搜索：word{}"
    rows("interactive", [(asked.format(TITLES[i], sid(1), sid(2), i), words(i, i)) for i in range(3)])
    rows("item_understand", [(f"描述{sid(i)}", {"pid": i, "answer": TITLES[i]}) for i in range(3)])
    lines = [f"看过：\n{TITLES[1]}\n{TITLES[2]}\n下一个：{TITLES[i]}\n为什么？" for i in range(3)]
    rows("rec_reason", [(line, {"uid": i, "target_pid": i, "answer": "so"}) for i, line in enumerate(lines)])
    raw = folder / "raw_data" / "onerec_data"
    write_table(raw / "pid2caption.parquet", pa.table({"pid": range(16), "dense_caption": TITLES}))
    path = folder / "models" / "sft" / "hf"
    path.parent.mkdir(parents=True)
    path.symlink_to(model)
    return path


def library_of(run: Path) -> Library:
    return Library(BenchData(run / "output" / "benchmark_data"), [run / "raw_data/onerec_data/pid2caption.parquet"])


def threaded(name: str, model: Any, ranker: Any, limit: int = 256, seconds: float = 600) -> Engine:
    """An engine whose model is in a thread."""
    engine = Engine(name, limit, seconds)

    def begin(connection: Any) -> threading.Thread:
        facts = {"context": model.context, "sids": model.spec is not None, "ranks": ranker is not None}
        connection.send(("ready", facts))
        thread = threading.Thread(target=work, args=(connection, model, ranker), daemon=True)
        thread.start()
        return thread

    engine.replicas = [Replica(begin)]
    return engine


@contextlib.contextmanager
def serving(service: Service, host: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """A client of a server of a service, which ends with the block."""
    loop, began, parts = asyncio.new_event_loop(), threading.Event(), []
    with contextlib.closing(listening(host, 0)) as door:

        async def main() -> None:
            for engine in service.engines.values():
                await engine.ready()
                engine.batches = service.metrics.batch.labels(engine.name).observe
            parts.append(server_of(service, host, 60, own_signals=False))
            began.set()
            await parts[0].serve([door])

        thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
        thread.start()
        assert began.wait(600), "the server does not begin"
        with httpx.Client(base_url=f"http://127.0.0.1:{door.getsockname()[1]}", timeout=600, trust_env=False) as client:
            yield client
        parts[0].should_exit = True
        thread.join(600)
        for engine in service.engines.values():
            engine.close()


def service_of(engine: Engine, library: Library | None, *others: Engine, write: Any = None) -> Service:
    return Service({one.name: one for one in (engine, *others)}, library, Metrics(), write)


def events(text: str) -> list[Any]:
    """The values of server-sent events."""
    return [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
