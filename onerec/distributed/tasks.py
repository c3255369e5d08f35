"""`onerec.workers.map_in_order` by tasks of a Ray cluster: the one at RAY_ADDRESS, or one started on this machine.

The nodes have this repository, its environment and all files of the run at the same paths: a file system that they
share. Items and results pass through Ray's object store, those of twice as many tasks as there are cores at a time. A
task whose process or node dies is repeated elsewhere, so it may begin twice, and its result counts once. The node of
the command itself, and Ray's head, must live.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from onerec.errors import InputError, reason
from onerec.run import ROOT

RETRIES = 3  # of a task whose process or node dies, and as many of one that a node has no memory for
# For a Ray on this machine alone, beside other work: Ray starts its workers at niceness 15, where they starve, and ends
# those that have not imported everything within a minute.
ON_A_BUSY_MACHINE = {"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"}
_SHARED = "the same file at the same path on every node: a file system that they share"
# In a process of the cluster: the run that it has begun, and the run's function.
_begun: tuple[str, Callable[[Any], Any]] | None = None


def map_on_ray(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int | None,
    begin: Callable[..., None] | None,
    arguments: tuple,
) -> Iterator[Any]:
    """`onerec.workers.map_in_order` with ``runner="ray"``; ``workers``: tasks at a time, None for all cores."""
    ray, cores = _connected(workers)
    # In a list: Ray hands the reference over, not the value.
    work = [ray.put((function, begin, arguments, os.getcwd()))]
    options = {"num_cpus": 1, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
    call, name = ray.remote(**options)(_call), uuid.uuid4().hex
    at_most = workers if workers and workers < cores else 2 * cores
    waiting: deque[Any] = deque()
    try:
        for item in items:
            waiting.append(call.remote(name, work, item))
            if len(waiting) >= at_most:
                yield _result(ray, waiting.popleft())
        while waiting:
            yield _result(ray, waiting.popleft())
    finally:
        for task in waiting:
            ray.cancel(task, force=True)


def _call(name: str, work: list[Any], item: Any) -> Any:
    """A task: the run's function of an item, in a process that has begun the run once."""
    global _begun
    if _begun is None or _begun[0] != name:
        import ray

        function, begin, arguments, folder = ray.get(work[0])
        try:
            os.chdir(folder)
        except OSError:
            raise InputError(folder, f"is no folder of the node {socket.gethostname()}", _SHARED) from None
        if begin:
            begin(*arguments)
        _begun = name, function
    return _begun[1](item)


def _connected(workers: int | None) -> tuple[Any, int]:
    """(Ray, cores of the cluster that this process has joined or started)."""
    # Read by this process as it loads Ray, which repeats without end a task that it has killed for a node's memory.
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        import ray
    except ImportError as error:
        raise InputError("--runner ray", f"Ray cannot be imported ({error})", "install it, or --runner local") from None
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)  # Ray puts its own in the place
        try:
            _join(ray, workers)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        alive = [node for node in ray.nodes() if node["Alive"]]
        cores = sum(int(node["Resources"].get("CPU", 0)) for node in alive)
        where = os.environ.get("RAY_ADDRESS") or "this machine"
        print(f"ray: {len(alive)} nodes, {cores} cores ({where})", file=sys.stderr, flush=True)
    return ray, max(1, int(ray.cluster_resources().get("CPU", 1)))


def _join(ray: Any, workers: int | None) -> None:
    """Join the cluster at RAY_ADDRESS, or start one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    # The processes of a cluster that was started before would import what its environment was installed from.
    options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": str(ROOT)}}}
    options |= {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address in ("", "local"):
            cores = workers or len(os.sched_getaffinity(0))
            start(ray, **options | {"address": "local", "num_cpus": cores, "include_dashboard": False})
            return
        host, _, port = address.rpartition(":")
        if port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=20).close()  # Ray itself would wait for ever
        ray.init(**options)
    except Exception as error:  # Ray has no class of its own for them
        what = f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"
        right = "the address of one (scripts/ray_start.sh), or unset, for one on this machine"
        raise InputError("RAY_ADDRESS" if address else "--runner ray", f"{what} ({reason(error)})", right) from error


def start(ray: Any, **options: Any) -> None:
    """`ray.init`, for a cluster here; Ray gives its node 30 seconds to come up, which a busy machine may not have."""
    for name, value in ON_A_BUSY_MACHINE.items():
        os.environ.setdefault(name, value)
    for left in (2, 1, 0):
        try:
            ray.init(**options)
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def _result(ray: Any, task: Any) -> Any:
    """What a task gave; its exception is raised as here, and what befell Ray as `InputError`."""
    try:
        return task.future().result()  # ray.get makes a Ctrl-C of every signal
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, InputError) and "no such file" in cause.what and os.path.exists(cause.file):
            cause = InputError(cause.file, "is not there on another node", _SHARED)
        raise (cause if isinstance(cause, Exception) else error) from error
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        right = "fewer tasks at a time, a larger --object-store-memory of `ray start`, or room in its --temp-dir"
        raise InputError("Ray's object store", f"is full ({type(error).__name__})", right) from None
    except ray.exceptions.RayError as error:
        what = f"died {RETRIES + 1} times ({type(error).__name__})"
        with contextlib.suppress(Exception):
            print(str(error), file=sys.stderr)
        raise InputError("a Ray task", what, "nodes that live, fewer tasks at a time, or more memory") from None
