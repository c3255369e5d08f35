"""Processes leave their group without a thread behind that needs the interpreter once it has ended."""

from __future__ import annotations

import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from onerec.distributed import process_group, wait_for_idle_gloo

ROOT = Path(__file__).resolve().parents[2]


def open_alone():
    """A group of one process; returned, as DeepSpeed keeps it, so that closing the group joins no thread."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.group.WORLD


def held_by_gloo() -> weakref.ref:
    """A tensor of a collective that is done, which only gloo's thread still holds.

    To let go of it the thread needs the interpreter's lock, which this one keeps from the start on: a switch interval
    without end, and no call that gives the lock up. (Where gloo was done before its call came back, the tensor has gone
    with ``work``: the next one is larger.)
    """
    import torch
    import torch.distributed as dist

    sys.setswitchinterval(1e6)
    for size in range(18, 26):
        tensor = torch.ones(1 << size)
        work = dist.all_gather([torch.empty_like(tensor)], tensor, async_op=True)
        held, future = weakref.ref(tensor), work.get_future()
        del tensor, work
        while not future.done():
            pass
        if held() is not None:
            return held
    raise AssertionError("gloo was faster than its caller every time")


@pytest.fixture
def clean():
    """What a test leaves of these is put back."""
    import torch.distributed as dist

    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    if dist.is_initialized():
        dist.destroy_process_group()


def test_gloos_threads_have_let_go_of_every_tensor(clean):
    open_alone()
    tensor = held_by_gloo()
    wait_for_idle_gloo()
    assert tensor() is None


def test_the_outermost_context_closes_the_group(clean):
    import torch.distributed as dist

    with process_group():
        open_alone()
        with process_group():
            pass
        assert dist.is_initialized()
    assert not dist.is_initialized()


def test_an_error_leaves_no_thread_at_work_either(clean):
    with pytest.raises(KeyError), process_group():
        open_alone()
        tensor = held_by_gloo()
        raise KeyError
    assert tensor() is None


def test_a_process_ends_with_its_own_status_while_others_hold_its_group():
    """It was ended by a signal, with "terminate called without an active exception" on standard error."""
    code = """
from tests.onerec.test_distributed import held_by_gloo, open_alone, process_group

with process_group():
    kept = open_alone()
    held_by_gloo()
    raise SystemExit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (3, "")
