"""One process makes the tokens; the others wait for it, as long as it lives, and end as it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore, PrefixStore

from onerec.errors import InputError
from onerec.folders import atomic_path
from pretrain import ranks
from pretrain.ranks import Processes
from tests.clusters import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Run:
    """The processes of two nodes of two, as threads; ``root`` and ``key`` of a process follow from its node."""

    def __init__(self, roots: list[Path], keys: list[str]) -> None:
        self.roots, self.keys = roots, keys
        self.made: list[tuple[int, str]] = []
        self.ends: dict[int, object] = {}
        self.store = HashStore()

    def process(self, rank: int) -> None:
        def fill(name: str) -> None:
            if not (self.roots[rank // 2] / name).exists():
                self.made.append((rank, name))
                self.make(rank, self.roots[rank // 2] / name)

        one = Processes(rank, 4, rank // 2 * 2, PrefixStore("run", self.store))
        try:
            self.ends[rank] = one.make_folder(self.roots[rank // 2], lambda: self.keys[rank // 2], fill)
        except BaseException as error:
            self.ends[rank] = error

    def make(self, rank: int, path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.mkdir()

    def __call__(self) -> dict[int, object]:
        threads = [threading.Thread(target=self.process, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert not any(thread.is_alive() for thread in threads), "a process waits for ever"
        return self.ends


def test_nodes_with_a_common_folder_make_it_once(tmp_path):
    run = Run([tmp_path / "tokens"] * 2, ["k", "k"])
    assert run() == dict.fromkeys(range(4), "k") and run.made == [(0, "k")]
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["k"]


def test_nodes_without_a_common_folder_make_one_each(tmp_path):
    run = Run([tmp_path / "node0", tmp_path / "node1"], ["k", "k"])
    assert run() == dict.fromkeys(range(4), "k") and sorted(run.made) == [(0, "k"), (2, "k")]
    assert (tmp_path / "node0/k").is_dir() and (tmp_path / "node1/k").is_dir()


def test_nodes_with_other_data_are_refused_on_every_process(tmp_path):
    ends = Run([tmp_path / "node0", tmp_path / "node1"], ["k", "other"])()
    for end in ends.values():
        assert isinstance(end, InputError) and "its data or tokenizer are others than the first" in str(end)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InputError("a.parquet", "is damaged", "write it again"), "a.parquet: is damaged; write it again"),
        (MemoryError("no room"), "could not be made by process 0 (MemoryError: no room); see what that process says"),
        (KeyboardInterrupt(), "could not be made by process 0 (KeyboardInterrupt: )"),
    ],
)
def test_a_failure_of_one_is_the_line_of_all(tmp_path, error, says):
    run = Run([tmp_path / "tokens"] * 2, ["k", "k"])

    def fail(rank, path):
        raise error

    run.make = fail
    ends = run()
    assert ends[0] is error
    assert all(isinstance(ends[rank], InputError) and says in str(ends[rank]) for rank in (1, 2, 3))
    assert not list((tmp_path / "tokens").iterdir())


def test_a_process_that_never_comes_ends_the_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "START", 0.3)
    run = Run([tmp_path / "tokens"] * 2, ["k", "k"])
    run.process(1)
    assert "process 0 gives no sign of life" in str(run.ends[1])


def test_the_first_sign_of_life_comes_before_the_work(tmp_path, monkeypatch):
    """One that is killed at once would count as one that has not come yet, for which the others wait far longer."""
    late = SimpleNamespace(start=lambda: None, join=lambda: None)  # a thread that does not get to run
    monkeypatch.setattr(ranks.threading, "Thread", lambda **_: late)
    store = HashStore()
    with Processes(0, 2, 0, store)._alive(tmp_path):
        assert store.add("beats/0", 0) == 1


def test_signs_of_life_keep_the_others_waiting(tmp_path, monkeypatch):
    """The one that makes takes longer than the silence after which it would count as dead, by a clock of its signs."""
    run = Run([tmp_path / "tokens"] * 2, ["k", "k"])
    make = run.make

    def signs():
        return run.store.add("run/beats/0", 0)

    def slow(rank, path):
        assert wait_until(lambda: signs() > 5)
        make(rank, path)

    monkeypatch.setattr(ranks, "BEAT", 0.1)
    clock = SimpleNamespace(monotonic=lambda: 0.9 * ranks.SILENCE * signs(), sleep=lambda seconds: time.sleep(0.01))
    monkeypatch.setattr(ranks, "time", clock)

    run.make = slow
    assert run() == dict.fromkeys(range(4), "k")


@pytest.mark.parametrize(
    ("roots", "found", "says"),
    [
        (["out", "out"], ["step5", "step5"], None),
        (
            ["node0", "node1"],
            ["step5", "step5"],
            r"node1: process [23] does not see what the first one writes",
        ),
        (["out", "out"], ["step5", "base"], r"process [23] would go on from base, the first one from step5; run the"),
    ],
)
def test_an_output_folder_is_one_and_the_same_on_all_nodes(tmp_path, roots, found, says):
    run, ends = Run([tmp_path / root for root in roots], []), {}

    def process(rank: int) -> None:
        one = Processes(rank, 4, rank // 2 * 2, PrefixStore("run", run.store))
        try:
            ends[rank] = one.check_shared(run.roots[rank // 2], found[rank // 2])
        except InputError as error:
            ends[rank] = error

    run.process = process
    run()
    assert len(ends) == 4 and not list(run.roots[0].iterdir())
    for end in ends.values():
        assert end is None if says is None else re.search(says, str(end))


# A process of two, both on one store that neither of them holds; the first is killed while it makes the folder.
MAKER = """
import os, signal, sys, threading
from datetime import timedelta
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from torch.distributed import TCPStore
from onerec.cli import cli
from pretrain import ranks
ranks.BEAT, ranks.SILENCE = 0.1, 3.0

def fill(name):
    print("making", flush=True)
    threading.Event().wait(3600)

rank, port = int(sys.argv[2]), int(sys.argv[3])
store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=600))
cli(lambda: print(ranks.Processes(rank, 2, 0, store).make_folder(Path(sys.argv[4]), lambda: "k", fill)))()
"""


def test_a_killed_process_is_noticed_and_is_one_line(tmp_path):
    from datetime import timedelta

    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=600))
    command = [sys.executable, "-c", MAKER, str(ROOT)]
    first, second = (
        subprocess.Popen(
            [*command, str(rank), str(store.port), str(tmp_path / "tokens")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "ONEREC_CODE": str(ROOT)},  # nobody need say which clone runs
        )
        for rank in (0, 1)
    )
    try:
        assert first.stdout.readline() == "making\n"
        first.send_signal(signal.SIGKILL)
        out, error = second.communicate(timeout=1800)
        assert second.returncode == 2 and not out
        assert "tokens: is not made: process 0 gives no sign of life for 3 s; see what" in error.splitlines()[-1]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
