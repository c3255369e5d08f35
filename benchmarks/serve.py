"""Serve a trained model: recommendations and chat over HTTP, and a page at / where one looks at both.

    python serve.py --model_path runs/smoke/models/sft/hf --port 8000
    curl localhost:8000/v1/recommend -H 'Content-Type: application/json' -d '{"history": ["17", "a title"], "k": 5}'

A model in a run's folder (<run>/models/<stage>/hf) finds the run's users, titles and results by itself. ONEREC_API_KEY
in the environment is a key that every request must bring; without one the server listens to this machine alone, unless
--host says otherwise. SIGTERM and Ctrl-C end it when what has been asked is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.backends.base import PRECISIONS
from benchmarks.catalogues import BenchData
from benchmarks.serving.engine import Engine
from benchmarks.serving.guard import Metrics
from benchmarks.serving.library import Library
from benchmarks.serving.service import Service
from benchmarks.serving.worker import Settings
from benchmarks.tasks import choose_tasks
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, POSITIVE, PROCESSES, ArgumentParser, integer
from onerec.model_folder import open_model_folder
from onerec.tasks import RANK_TASKS

KEY = "ONEREC_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    add("--data_dir", type=Path, help="benchmark_data folder (default: that of the model's run)")
    add("--titles", nargs="*", type=Path, help="pid2caption.parquet: titles (default: those of the model's run)")
    add("--product_titles", nargs="*", type=Path, help="the same of products")
    add("--results_dir", type=Path, help="results of a version, whose best counting baseline is shown (the run's)")
    add("--compare_with", type=Path, help="another checkpoint, shown beside the model")
    add("--prior", type=Path, help="item prior of requests with prior_weight (default: transitions of training users)")
    add("--product_prior", type=Path, help="the same of products")
    add("--host", default=LOOPBACK[0], help="address to listen to; 0.0.0.0: all, with a key in " + KEY)
    add("--port", type=integer(0, 65535), default=8000, help="0: any free one")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 on a GPU, fp32 elsewhere")
    add("--replicas", type=PROCESSES, default=1, help="processes with a copy of the model, on GPUs in turn")
    add("--text_server", default="", help="URL (…/v1) of a server with the same weights that writes the chat: vLLM's")
    add("--max_waiting", type=COUNT, default=256, help="questions to a model at a time; more get status 429")
    add("--time_limit", type=POSITIVE, default=60.0, help="seconds that an answer may take")
    args = parser.parse_args(argv)
    return of_run(args)


def of_run(args: argparse.Namespace) -> argparse.Namespace:
    """The flags with what the run of the model has, where they do not say it."""
    parents = Path(os.path.abspath(args.model_path)).parents  # the folder that was named, where it is a link
    run = next((parent.parent for parent in parents if parent.name == "models"), None)
    raw, found = (run / "raw_data" / "onerec_data", run / "output" / "benchmark_data") if run else (None, None)
    if args.data_dir is None and found is not None and found.is_dir():
        args.data_dir = found
    ours = found is not None and args.data_dir is not None and args.data_dir.resolve() == found.resolve()
    for name, file in (("titles", "pid2caption.parquet"), ("product_titles", "product_pid2caption.parquet")):
        if getattr(args, name) is None:
            setattr(args, name, [raw / file] if ours and (raw / file).is_file() else [])
    if args.results_dir is None and ours:
        versions = sorted((run / "benchmarks" / "results").glob("*"))
        args.results_dir = versions[-1] if versions else None
    return args


def name_of(path: Path) -> str:
    """What a checkpoint is called: its folder or, of a run's, the stage."""
    path = Path(os.path.abspath(path))
    return path.parent.name if path.name == "hf" else path.name


def engines_of(args: argparse.Namespace) -> dict[str, tuple[Engine, Settings]]:
    """The engines by their names, with what each is to load; raises `InputError` for a folder that is no checkpoint."""
    found: dict[str, tuple[Engine, Settings]] = {}
    data = BenchData(args.data_dir) if args.data_dir and choose_tasks(args.data_dir, None) else None
    for path in filter(None, (args.model_path, args.compare_with)):
        spec = open_model_folder(path).spec
        if data is not None and spec is not None and not spec.same_codebooks(data.spec):
            what, right = (
                f"has codebooks {spec.codebook_sizes}",
                f"those of {args.data_dir}: {data.spec.codebook_sizes}",
            )
            raise InputError(path, what, right)
        name = name_of(path) if name_of(path) not in found else os.path.abspath(path)[-200:]
        settings = Settings(path, args.data_dir, args.prior, args.product_prior, args.device, args.precision)
        found[name] = Engine(name, args.max_waiting, args.time_limit), settings
    return found


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; raises `InputError` where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError("--port", f"{port} is in use", "another one, or 0 for any that is free") from None
        what = f"cannot listen to {host}:{port} ({error.strerror or error})"
        raise InputError("--host", what, "an address of this machine") from None
    found.listen(1024)
    return found


def server_of(service: Service, host: str, time_limit: float, own_signals: bool = True) -> Any:
    """uvicorn's server of a service. With ``own_signals`` (in the main thread) it ends well on those of `ENDING`."""
    import uvicorn

    from benchmarks.serving.app import make_app

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """A first signal ends the server when all is answered, a second one at once."""
            loop = asyncio.get_running_loop()
            # What is ignored (nohup) stays so.
            numbers = [n for n in ENDING if own_signals and signal.getsignal(n) is not signal.SIG_IGN]
            for number in numbers:
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield
            for number in numbers:
                loop.remove_signal_handler(number)

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.force_exit, self.should_exit = self.should_exit, True

    app = make_app(service, os.environ.get(KEY, ""), (*LOOPBACK, "[::1]") if host in LOOPBACK else None)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=4096,
        timeout_graceful_shutdown=int(time_limit) + 5,
    )
    return Server(config)


async def serve(args: argparse.Namespace, door: socket.socket) -> None:
    """Load, say where, answer until told to end."""
    address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{door.getsockname()[1]}"
    found = engines_of(args)
    print(f"loading {', '.join(map(str, filter(None, (args.model_path, args.compare_with))))}", flush=True)
    started: list[Engine] = []
    try:
        for place, (engine, settings) in enumerate(found.values()):
            started.append(engine)
            engine.start(settings, args.replicas if place == 0 else 1)
        library = None
        if args.data_dir:
            library = Library(BenchData(args.data_dir), args.titles, args.product_titles, args.results_dir)
            await asyncio.to_thread(library.baseline, next(name for name in RANK_TASKS if name in library.tasks))
        write = None
        if args.text_server:
            from benchmarks.serving.upstream import writer

            write = writer(args.text_server, args.time_limit)
        await asyncio.gather(*(engine.ready() for engine in started))
        service = Service({engine.name: engine for engine in started}, library, Metrics(), write)
        for engine in started:
            if why := service.why_not(engine):
                print(f"warning: {why}", file=sys.stderr, flush=True)
            engine.batches = service.metrics.batch.labels(engine.name).observe
        if args.host not in LOOPBACK and not os.environ.get(KEY):
            print(f"warning: {address}: anybody who reaches it may ask; {KEY} sets a key", file=sys.stderr, flush=True)
        print(f"open {address}/ (Ctrl-C ends it)", flush=True)
        await server_of(service, args.host, args.time_limit).serve([door])
        print("ended: what was asked has been answered", flush=True)
    finally:
        for engine in started:
            engine.close()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with contextlib.closing(listening(args.host, args.port)) as door:
        asyncio.run(serve(args, door))


if __name__ == "__main__":
    cli(main)()
