"""The processes of a distributed run (torchrun): the process group that they open and leave together.

Why leaving needs care: a thread of gloo, PyTorch's backend for CPUs, frees a collective's tensors only after it has
told the caller that the collective is done, and needs the interpreter's lock for it. Where that comes after the
interpreter has begun to end, C++ aborts the process: "terminate called without an active exception"
(https://github.com/pytorch/pytorch/issues/190489). `destroy_process_group` joins these threads only where nothing else
holds the group, and DeepSpeed, FSDP2 and others do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from onerec.run import processes

_GLOO_THREAD = "pt_gloo_runloop"
_LOOK_SECONDS = 0.02  # longer than the 5 ms after which a thread that waits for the interpreter's lock asks again


@contextlib.contextmanager
def process_group(backend: str | None = None, timeout: timedelta | None = None) -> Iterator[None]:
    """Hold the default process group open inside, and leave it together with every other process.

    ``backend`` ("gloo", "nccl") opens it where there are several processes; None leaves that to a library called inside
    (accelerate, DeepSpeed). ``timeout`` is that of its collectives. At the end all wait for each other, since one that
    leaves early takes its connections from the others; then the outermost context closes the group. An error waits for
    no one and closes nothing: the others may stand in a collective that never ends.
    """
    import torch
    import torch.distributed as dist

    ours = not dist.is_initialized()
    if ours and backend and processes()[1] > 1:
        dist.init_process_group(backend, timeout=timeout)
    try:
        yield
        if dist.is_initialized():
            dist.barrier(device_ids=[torch.cuda.current_device()] if dist.get_backend() == "nccl" else None)
            if ours:
                dist.destroy_process_group()
    finally:
        if ours:
            wait_for_idle_gloo()


def wait_for_idle_gloo(seconds: float = 60.0) -> None:
    """Return when no thread of gloo has anything in hand that needs the interpreter, or after ``seconds``.

    Linux alone tells the threads' states. A thread is idle that slept all the while the interpreter's lock was free:
    one that waits for the lock is woken by that.
    """
    end = time.monotonic() + seconds
    before = None
    while (now := _gloo_threads()) and time.monotonic() < end:
        if now == before and all(state == "S" for state, _ in now.values()):
            return
        before = now
        time.sleep(_LOOK_SECONDS)


def _gloo_threads() -> dict[str, tuple[str, int]]:
    """(state letter, how often it was switched to or from) of each of gloo's threads of collectives, by thread id."""
    found = {}
    for task in Path("/proc/self/task").glob("*/status"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields = dict(line.split(":\t", 1) for line in task.read_text().splitlines() if ":\t" in line)
            if fields["Name"] == _GLOO_THREAD:
                switches = int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])
                found[task.parent.name] = (fields["State"][0], switches)
    return found
