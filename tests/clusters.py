"""A Ray cluster of several nodes on one machine, for runs that join one, and what is at work below a process."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from onerec.distributed.tasks import ON_A_BUSY_MACHINE
from onerec.keeper import descendants, keep


def free_port() -> int:
    """A port of this machine that nobody listens on, and below those that the system gives to whoever asks for any."""
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", random.SystemRandom().randrange(20_000, 32_000)))
            return listener.getsockname()[1]


class RayCluster(NamedTuple):
    """A Ray cluster that runs join by ``address``; its processes are below ``pid``."""

    address: str
    pid: int

    def at_work(self) -> list[str]:
        """Command lines of actors and of what they started, without the cluster's own processes and idle workers."""
        own = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
        lines = command_lines(self.pid)
        return [line for line in lines if line.startswith(("ray::", "VLLM::")) and not line.startswith(own)]


def command_line(pid: int) -> str:
    """What a process was started with, or calls itself; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def command_lines(root: int) -> list[str]:
    """Command lines of the processes below ``root``, but for zombies."""
    return list(filter(None, map(command_line, descendants(root))))


def below(pid: int) -> list[psutil.Process]:
    """The processes below one; ``is_running()`` tells each from another that has its number later."""
    return psutil.Process(pid).children(recursive=True)


@contextlib.contextmanager
def started(command: list[str], **popen: Any) -> Iterator[subprocess.Popen]:
    """A process that ends with the block; it is told to where the block fails, which would otherwise wait for it."""
    with subprocess.Popen(command, **popen) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def wait_until(true: Callable[[], object], seconds: float = 300) -> bool:
    """Whether ``true()`` becomes so within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(found)


@contextlib.contextmanager
def _nodes(resources: str, count: int) -> Iterator[tuple[RayCluster | None, str]]:
    """A cluster (None where a node did not come up) and what `ray start` said; it is gone when the block is left."""
    # Not under pytest's folders: the paths of Ray's sockets may have 107 characters.
    folder, port = tempfile.mkdtemp(prefix="ray"), free_port()
    node = f"{Path(sys.executable).with_name('ray')} start {resources}"
    node += " --object-store-memory 200000000 --dashboard-agent-listen-port 0"
    head = f"--head --port {port} --temp-dir {folder} --ray-client-server-port {free_port()} --include-dashboard false"
    # The nodes stand on one machine, which others share: Ray would kill workers for the memory of all.
    settings = {
        **ON_A_BUSY_MACHINE,
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise Ray asks for a token where a run on this machine alone has left one in the home folder.
        "RAY_AUTH_MODE": "disabled",
    }
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    starts = " && ".join([f"{node} {head}", *[f"{node} --address 127.0.0.1:{port}"] * (count - 1)])
    script = f"({starts}) 2>&1 && echo all are up && exec sleep infinity"
    with keep(["bash", "-c", script], grace=5, env=environment | settings, stdout=-1, text=True) as cluster:
        try:
            said = ""
            while "all are up" not in said and (line := cluster.stdout.readline()):
                said += line
            up = "all are up" in said
            yield RayCluster(f"127.0.0.1:{port}", cluster.pid) if up else None, said
        finally:
            cluster.stdin.close()
            cluster.wait()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def started_cluster(resources: str, count: int = 2) -> Iterator[RayCluster]:
    """A Ray cluster of so many nodes with ``resources`` each, started as by somebody else, without our environment."""
    for _ in range(3):
        # Ray gives a node 30 seconds to come up, which a busy machine may not have.
        with _nodes(resources, count) as (cluster, said):
            if cluster:
                yield cluster
                return
    pytest.fail(said)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[RayCluster]:
    """A Ray cluster of two nodes with three slots each."""
    with started_cluster("--num-cpus 20 --num-gpus 3") as cluster:
        yield cluster
