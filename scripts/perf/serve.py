"""The server beside its engine, and under load: requests a second, latencies, bad requests, memory, the end.

    python scripts/perf/serve.py --model_path <run>/models/sft/hf --data_dir <run>/output/benchmark_data
    python scripts/perf/serve.py … --requests 1000 --clients                # the load alone, as the tests run it

The engine answers the same questions in a loop in a process of its own, as many at a time as there are clients, before
and after. A client asks, waits and asks again. Then come --requests with a fifth of them bad: malformed, unknown items,
too large, cut off. Every good one must get the answer that it gets alone. At last SIGTERM, with questions at work.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

sys.path.insert(0, str(Path(__file__).parent))
from measure import ROOT, ArgumentParser, add_numbers, itself, print_heads, print_row

from onerec.cli import cli
from onerec.flags import COUNT
from onerec.keeper import descendants

BATCH = 64
ROUTE = "/v1/recommend"
HEAD = "{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
BAD = ("malformed", "unknown item", "too large", "cut while asking", "cut while waiting")
MOST_GROWTH = 0.15  # of the resident memory, from the first tenth of the requests to the last


def parse_args() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_path", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument(
        "--clients", type=COUNT, nargs="*", default=[1, 8, 64], help="clients at a time; none: the load alone"
    )
    add_numbers(
        parser,
        requests=(10_000, "requests under load"),
        measured=(1000, "requests a row of the table"),
        beams=(32, "beams"),
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--engine_alone", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# --- the engine in a loop


def engine_alone(args: argparse.Namespace) -> None:
    """Write (questions a second, processor ms of each) of the engine in a loop, by how many at a time, to ``--out``."""
    from benchmarks.catalogues import BenchData
    from benchmarks.serving.library import Library
    from benchmarks.serving.questions import question
    from benchmarks.serving.ranker import Wanted
    from benchmarks.serving.worker import Settings, opened

    library = Library(BenchData(args.data_dir))
    _, ranker = opened(Settings(args.model_path, args.data_dir, device=args.device))
    wanted = []
    for body in bodies(library, args):
        asked = question(library, body["task"], history=body["history"])
        wanted.append(Wanted(body["task"], asked.messages, tuple(asked.history), beams=args.beams))
    found = {}
    for size in args.clients:
        rounds = itertools.cycle(wanted)
        ranker.rank([next(rounds) for _ in range(size)])
        count, start, used = 0, time.perf_counter(), time.process_time()
        while count < args.measured:
            ranker.rank([next(rounds) for _ in range(size)])
            count += size
        found[str(size)] = count / (time.perf_counter() - start), 1e3 * (time.process_time() - used) / count
    args.out.write_text(json.dumps(found))


def bodies(library: Any, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests: every test user's history, and as many that differ from it in one item."""
    shelf, draw, found = library.shelf("video"), random.Random(0), []
    for example in library.examples["video"][:200]:
        history = [shelf.show(pid) for pid in example.history]
        found.append({"task": "video", "history": history, "num_beams": args.beams})
        other = [*history[:-1], shelf.show(draw.choice(shelf.pids))]
        found.append({"task": "video", "history": other, "num_beams": args.beams})
    return found


# --- the server


@contextlib.contextmanager
def server(args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen, int]]:
    """The server's process and port."""
    flags = [args.model_path, "--data_dir", args.data_dir, "--device", args.device, "--port", "0"]
    command = ["bash", str(ROOT / "benchmarks/serve.sh"), *map(str, flags)]
    env = {**os.environ, "PYTHON": sys.executable, "VENV": ""}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stdout if line.startswith("open ")), "")
            if not line:
                sys.exit("the server did not start")
            yield process, int(line.split("/")[2].rpartition(":")[2])
        finally:
            if process.poll() is None:
                process.kill()


class Client:
    """A connection that is kept."""

    def __init__(self, port: int) -> None:
        self.port, self.reader, self.writer = port, None, None

    async def send(self, body: bytes, what: str = f"POST {ROUTE}") -> None:
        """Send a request."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(HEAD.format(what, len(body)).encode() + body)
        await self.writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """(status, body) of the answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await self.reader.readexactly(length)
        if b"connection: close" in head:
            self.cut()
        return int(head.split(b" ", 2)[1]), body

    async def ask(self, body: bytes, what: str = f"POST {ROUTE}") -> tuple[int, bytes]:
        await self.send(body, what)
        return await self.answer()

    def cut(self) -> None:
        """End the connection, whatever is on its way."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


async def in_a_loop(port: int, asked: Sequence[bytes], clients: int, count: int) -> tuple[float, list[float]]:
    """(requests a second, seconds of each) of clients that ask, wait and ask again."""
    rounds, seconds, left = itertools.cycle(asked), [], iter(range(count))

    async def one() -> None:
        client = Client(port)
        for _ in left:
            start = time.perf_counter()
            status, body = await client.ask(next(rounds))
            assert status == 200, body[:300]
            seconds.append(time.perf_counter() - start)
        client.cut()

    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return count / (time.perf_counter() - start), sorted(seconds)


def items_of(body: bytes) -> list[Any]:
    """What an answer recommends, without what may differ in the last digits between two batches."""
    return [(item["pid"], round(item["logprob"], 2)) for item in json.loads(body)["items"]]


def same(found: Sequence[Any], alone: Sequence[Any]) -> bool:
    """Whether two lists are one, but for neighbours of nearly one score."""
    scores = zip(found, alone, strict=True)
    return len(found) == len(alone) and all(abs(a[1] - b[1]) < 0.05 for a, b in scores)


async def under_load(port: int, asked: Sequence[bytes], count: int, memory: Any) -> tuple[Counter, list[int]]:
    """(outcomes by name, memory at the first tenth and at the end) of requests of which a fifth are bad."""
    alone_client, alone = Client(port), []
    for body in asked:
        alone.append(items_of((await alone_client.ask(body))[1]))
    draw, outcomes, sizes = random.Random(1), Counter(), []
    plan = [(BAD[i // 5 % len(BAD)] if i % 5 == 0 else "", draw.randrange(len(asked))) for i in range(count)]
    left = iter(enumerate(plan))

    async def one() -> None:
        client = Client(port)
        for number, (bad, which) in left:
            if number == count // 10:
                sizes.append(memory())
            outcomes[await outcome(client, bad, asked[which], alone[which])] += 1
        client.cut()

    await asyncio.gather(*(one() for _ in range(BATCH)))
    sizes.append(memory())
    return outcomes, sizes


async def outcome(client: Client, bad: str, body: bytes, alone: list[Any]) -> str:
    """Send a good request (``bad`` is empty) or a bad one; what came of it, ``wrong: …`` where it is not what it is to
    be.
    """
    try:
        if bad == "cut while asking":
            await client.send(body)  # a whole one, so that the connection is there
            await client.answer()
            client.writer.write(HEAD.format(f"POST {ROUTE}", len(body)).encode() + body[: len(body) // 2])
            client.cut()
            return bad
        if bad == "cut while waiting":
            await client.send(body)
            await asyncio.sleep(0.001)
            client.cut()
            return bad
        if bad == "too large":
            body = b'{"history": ["' + b"x" * (2 << 20)
        elif bad == "malformed":
            body = body[:-3]
        elif bad == "unknown item":
            body = json.dumps({"history": ["no such item"]}).encode()
        status, answer = await client.ask(body)
    except (OSError, asyncio.IncompleteReadError) as error:
        client.cut()
        # A server that has refused a large body need not read it.
        return bad if bad == "too large" else f"wrong: lost ({type(error).__name__})"
    if bad:
        right = {"malformed": 400, "unknown item": 400, "too large": 413}[bad]
        return bad if status == right else f"wrong: {bad} got {status}"
    if status != 200:
        return f"wrong: a good one got {status}"
    return "answered" if same(items_of(answer), alone) else "wrong: another one's answer"


async def arrived(port: int) -> tuple[int, int]:
    """How many questions for items the server has answered, and has before it."""
    client = Client(port)
    _, text = await client.ask(b"", "GET /metrics")
    client.cut()
    samples = [sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples]
    answered = (s.value for s in samples if s.name == "onerec_requests_total" and s.labels["route"] == ROUTE)
    return int(sum(answered)), int(sum(s.value for s in samples if s.name == "onerec_waiting"))


async def the_end(process: subprocess.Popen, port: int, asked: Sequence[bytes]) -> tuple[int, int]:
    """(answers of `BATCH` questions that were at work at SIGTERM, the server's exit status)."""
    clients = [Client(port) for _ in range(BATCH)]

    async def until(true: Callable[[int, int], bool]) -> tuple[int, int]:
        while not true(*(counts := await arrived(port))):
            await asyncio.sleep(0.002)
        return counts

    # Nothing is left of clients that did not wait.
    before, _ = await asyncio.wait_for(until(lambda answered, waiting: not waiting), 60)
    for client, body in zip(clients, itertools.cycle(asked), strict=False):
        await client.send(body)
    # A busy machine takes its time to read them, and what a server has not read is not at work.
    await asyncio.wait_for(until(lambda answered, waiting: answered + waiting >= before + BATCH), 60)
    process.send_signal(signal.SIGTERM)
    answers = await asyncio.gather(*(client.answer() for client in clients), return_exceptions=True)
    good = sum(not isinstance(answer, BaseException) and answer[0] == 200 for answer in answers)
    return good, await asyncio.to_thread(process.wait)


def processor(root: int) -> list[float]:
    """Seconds of processor that the HTTP side's process and the model's, the largest below it, have used."""
    model = max(descendants(root), key=lambda pid: int(Path(f"/proc/{pid}/statm").read_text().split()[1]))
    used = []
    for pid in (root, model):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        used.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
    return used


def resident(root: int) -> int:
    """Resident memory of a process and those below it, in bytes."""
    pages = 0
    for pid in (root, *descendants(root)):
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def print_table(before: dict[str, Any], after: dict[str, Any], rows: Sequence[Any]) -> None:
    """The engine in a loop, the mean of before and after, and the server beside it."""
    print_heads("", "a second", "of the engine's", "median ms", "99 % ms", "processor ms each: model", "HTTP")
    engine = {size: [statistics.mean(pair) for pair in zip(before[size], after[size], strict=True)] for size in before}
    for size, (rate, used) in engine.items():
        ends = f"{rate:.1f} ({before[size][0]:.1f} before, {after[size][0]:.1f} after)"
        print_row(f"engine, {size} at a time", ends, "", "", "", f"{used:.2f}", "")
    for clients, rate, seconds, (front, model) in rows:
        late = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
        times = (f"{1e3 * statistics.median(seconds):.1f}", f"{1e3 * late:.1f}", f"{model:.2f}", f"{front:.2f}")
        print_row(f"clients: {clients}", f"{rate:.1f}", f"{rate / engine[str(clients)][0]:.0%}", *times)


def main() -> None:
    args = parse_args()
    if args.engine_alone:
        return engine_alone(args)
    from benchmarks.catalogues import BenchData
    from benchmarks.serving.library import Library

    asked = [json.dumps(body).encode() for body in bodies(Library(BenchData(args.data_dir)), args)]
    shared = ["--model_path", args.model_path, "--data_dir", args.data_dir, "--device", args.device]
    alone = ["--engine_alone", *shared, "--measured", args.measured, "--beams", args.beams, "--clients", *args.clients]
    before = itself(*alone)[0] if args.clients else {}
    with server(args) as (process, port):
        rows = []
        for clients in args.clients:
            asyncio.run(in_a_loop(port, asked, clients, max(clients, args.measured // 10)))
            used = processor(process.pid)
            rate, seconds = asyncio.run(in_a_loop(port, asked, clients, args.measured))
            spent = [1e3 * (b - a) / args.measured for a, b in zip(used, processor(process.pid), strict=True)]
            rows.append((clients, rate, seconds, spent))
        start = time.perf_counter()
        outcomes, sizes = asyncio.run(under_load(port, asked, args.requests, lambda: resident(process.pid)))
        took = time.perf_counter() - start
        answered, status = asyncio.run(the_end(process, port, asked))
    after = itself(*alone)[0] if args.clients else {}
    print(f"{len(asked)} questions, {args.beams} beams, {os.cpu_count()} cores, {args.device}")
    if rows:
        print_table(before, after, rows)
    print(
        f"{args.requests:,} requests in {took:.0f} s: {', '.join(f'{k}: {n:,}' for k, n in sorted(outcomes.items()))}"
    )
    print(f"memory: {sizes[0] / 2**20:.0f} MiB after a tenth, {sizes[-1] / 2**20:.0f} MiB at the end")
    print(f"SIGTERM: {answered} of {BATCH} questions at work were answered, exit status {status}")
    wrong = [name for name in outcomes if name.startswith("wrong")]
    if wrong or sum(outcomes.values()) != args.requests or sizes[-1] > sizes[0] * (1 + MOST_GROWTH):
        sys.exit(f"error: the server under load: {wrong or 'requests were lost, or its memory grows'}; see above")
    if (answered, status) != (BATCH, 0):
        sys.exit("error: SIGTERM: questions at work were not answered, or the server failed; see above")


if __name__ == "__main__":
    cli(main)()
