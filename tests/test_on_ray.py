"""The same commands on a Ray cluster of three nodes of a core each: the same bytes, though nodes and processes die."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from data import ray_shuffle
from data.onerec_data import build, users
from data.onerec_data.run import main as make_tasks
from data.prepare_mix import main as mix
from data.validate import main as validate
from onerec import workers
from onerec.errors import InputError
from onerec.keeper import STOPPED, descendants
from onerec.parquet import embedding_table, write_table
from onerec.records import chat_record, message, record_uuid, text_record, write_records
from pretrain import tokenization
from pretrain.tokenize_data import main as tokenize
from tests.arguments import as_flags
from tests.clusters import RayCluster, below, command_line, command_lines, started, started_cluster, wait_until
from tests.data.conftest import release  # noqa: F401  a fixture
from tests.data.tests_data import user
from tests.pretrain.conftest import world  # noqa: F401  a fixture
from tokenizer import encoding
from tokenizer.infer_res_kmeans import main as infer
from tokenizer.res_kmeans import ResKmeans

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    import ray

    with started_cluster("--num-cpus 1", 3) as cluster:
        yield cluster
        ray.shutdown()


@pytest.fixture
def cluster(nodes, monkeypatch) -> RayCluster:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    return nodes


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but manifests, which hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("manifest.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def dying(function: Callable[[Any], Any], head: int, died: Path, item: Any) -> Any:
    """``function``; the first call takes its process along, or its node where that is not the node of ``head``.

    Calls there wait for that: they might have done all of the work before another node has begun.
    """
    raylet = os.getppid()
    if raylet == head:
        wait_until(died.exists)
    elif not died.exists():
        died.touch()
        os.kill(raylet if head else os.getpid(), signal.SIGKILL)
        signal.pause()
    return function(item)


@pytest.fixture
def dies(cluster, monkeypatch, tmp_path):
    """Have a module's next run on the cluster lose a process, or a node, within a task; gives the file that says so."""

    def of(module, node=False, name=None):
        raylets = [p for p in psutil.Process(cluster.pid).children(recursive=True) if p.name() == "raylet"]
        head = next(process.pid for process in raylets if "--head" in process.cmdline()) if node else 0
        assert len(raylets) > 1 or not node

        def patched(function, *arguments, **more):
            if name in (None, function.__name__):
                function = functools.partial(dying, function, head, tmp_path / "died")
            return workers.map_in_order(function, *arguments, **more)

        monkeypatch.setattr(module, "map_in_order", patched)
        return tmp_path / "died"

    return of


def test_the_tasks_are_the_same_bytes_though_a_node_dies(release, monkeypatch, dies):  # noqa: F811
    monkeypatch.setattr(users, "USERS_PER_BATCH", 3)
    release.write([user(i, split=int(i % 5 == 0)) for i in range(1, 31)])
    make_tasks(release.argv())
    before = contents(release.output)
    died = dies(build, node=True)
    make_tasks(release.argv("--runner", "ray", "--output_dir", str(release.folder / "ray")))
    assert died.exists()
    assert contents(release.folder / "ray") == before and len(before) > 12


def words(source: str, start: int, end: int) -> list[dict[str, Any]]:
    return [text_record(record_uuid("t", i), source, {"uid": i}, [f"{source} {i} 文" * 60]) for i in range(start, end)]


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """Arguments of a mix: sampled and capped sources, users left out, doubles that differ, more than one bucket."""
    write_records(tmp_path / "a" / "0.parquet", words("a", 0, 800), rows_per_batch=100)
    write_records(tmp_path / "a" / "1.parquet", words("a", 800, 1300))
    write_records(tmp_path / "b.parquet", words("b", 1200, 1800), rows_per_batch=250)
    turns = [message("user", "问"), message("assistant", "答" * 300)]
    write_records(tmp_path / "c.parquet", [chat_record(record_uuid("c", i), "c", {}, turns) for i in range(500)])
    write_records(tmp_path / "out.parquet", words("a", 100, 200))
    named = [{"name": "a", "path": "a", "weight": 0.9}, {"name": "b", "path": "b.parquet"}]
    capped = {"name": "c", "path": "c.parquet", "max_rows": 333}
    config = {"sources": [*named, capped], "rows_per_file": 64, "exclude_users": ["out.parquet"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return ["--config", str(tmp_path / "config.json"), "--base_dir", str(tmp_path), "--buffer_mb", "1"]


def test_a_mix_is_the_same_bytes_though_a_node_dies(sources, tmp_path, dies):
    mix([*sources, "--output_dir", str(tmp_path / "local")])
    died = dies(ray_shuffle, node=True, name="write_bucket")
    mix([*sources, "--output_dir", str(tmp_path / "ray"), "--runner", "ray"])
    assert died.exists()
    local, ray = contents(tmp_path / "local"), contents(tmp_path / "ray")
    assert local == ray and len(local) > 20
    told = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("local", "ray")]
    for same in ("dropped", "inputs", "rows_by_source", "rows_of_excluded_users", "buckets"):
        assert told[0][same] == told[1][same], same
    assert told[0]["dropped"]["uuid stands twice"] and told[0]["buckets"] > 2


def test_the_steps_of_a_mix_give_its_bytes_without_a_cluster_too(sources, tmp_path, monkeypatch):
    def by_one(function, items, workers, begin=None, arguments=(), runner=""):
        # What every task is sent does not grow with the spill files.
        if begin:
            begin(*arguments)
            items = list(items)
            assert all(len(pickle.dumps(item)) < 100 for item in items)
        return map(function, items)

    monkeypatch.setattr(ray_shuffle, "map_in_order", by_one)
    for size in ("1", "1000"):
        runs = {name: tmp_path / f"{name}{size}" for name in ("local", "ray")}
        for name, folder in runs.items():
            mix([*sources[:-1], size, "--output_dir", str(folder), "--runner", name])
        assert contents(runs["local"]) == contents(runs["ray"])


def test_records_are_checked_by_tasks_in_the_same_words(cluster, tmp_path, capsys):
    write_records(tmp_path / "in" / "0.parquet", words("a", 0, 50))
    write_records(tmp_path / "in" / "1.parquet", [*words("a", 50, 60), {**words("a", 7, 8)[0], "source": "b"}])
    write_records(tmp_path / "in" / "2.parquet", [*words("a", 60, 70), {**words("a", 70, 71)[0], "uuid": "none"}])
    told = []
    for runner in ("local", "ray"):
        with pytest.raises(InputError, match="2 of 72 rows break the format") as error:
            validate([str(tmp_path / "in"), "--runner", runner])
        told.append((str(error.value), capsys.readouterr().out))
    assert told[0] == told[1] and "1.parquet: row 10" in told[0][1] and "2.parquet: row 10" in told[0][1]
    (tmp_path / "in" / "1.parquet").unlink()
    (tmp_path / "in" / "2.parquet").unlink()
    validate([str(tmp_path / "in"), "--runner", "ray"])
    assert capsys.readouterr().out == "valid: 50 rows\n"


def test_the_codes_are_the_same_bytes_though_a_process_dies(tmp_path, dies):
    rng = np.random.default_rng(0)
    for i in range(3):
        vectors = rng.standard_normal((400, 8)).astype(np.float32)
        vectors[i] = np.nan
        pids = np.arange(400) + 390 * i  # some pids stand in two files
        write_table(tmp_path / "emb" / f"{i}.parquet", embedding_table(pids, vectors))
    write_table(tmp_path / "emb" / "00.parquet", embedding_table([], np.zeros((0, 8), np.float32)))  # behind 0.parquet
    model = ResKmeans([rng.standard_normal((4, 8)).astype(np.float32) for _ in range(2)])
    model.save(tmp_path / "model.pt")
    argv = as_flags(model_path=tmp_path, emb_path=tmp_path / "emb", batch_size=150, max_bad_ratio=0.1)
    infer([*argv, "--output_path", str(tmp_path / "local")])
    died = dies(encoding)
    infer([*argv, "--output_path", str(tmp_path / "ray"), "--runner", "ray"])
    assert died.exists() and contents(tmp_path / "local") == contents(tmp_path / "ray")
    told = [json.loads((tmp_path / name / "pid2sid.manifest.json").read_text()) for name in ("local", "ray")]
    for same in ("dropped", "inputs", "bad_rows", "collision_rate"):
        assert told[0][same] == told[1][same], same
    assert len(told[0]["bad_rows"]) == 3 and len(told[0]["dropped"]) == 2
    with pytest.raises(InputError, match="encode on CPUs"):
        infer([*argv, "--device", "cuda", "--runner", "ray"])


def test_the_tokens_are_the_same_bytes_though_a_process_dies(world, tmp_path, dies, monkeypatch):  # noqa: F811
    config = {"name": "chat_completion_parquet", "sources": [str(world / "rec"), str(world / "general")]}
    (tmp_path / "config.json").write_text(json.dumps({**config, "max_length": 512}))
    argv = as_flags(model_dir=world / "base_itemic", dataset_config=tmp_path / "config.json")
    tokenize([*argv, "--token_dir", str(tmp_path / "local")])
    died = dies(tokenization, name="_tokenized")

    def unused(*files):
        raise AssertionError("the command reads what tasks are to read")

    monkeypatch.setattr(tokenization, "files_digests", unused)
    tokenize([*argv, "--token_dir", str(tmp_path / "ray"), "--runner", "ray"])
    local, ray = contents(tmp_path / "local"), contents(tmp_path / "ray")
    assert died.exists() and local.keys() == ray.keys() and len(local) == 4
    assert all(local[name] == ray[name] for name in local if not name.endswith(".npz"))
    for name in (name for name in local if name.endswith(".npz")):  # a zip, which holds times
        with np.load(tmp_path / "local" / name) as one, np.load(tmp_path / "ray" / name) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one)


def refuse(item: int) -> int:
    raise InputError(f"file {item}", "is wrong", "another")


def lacks(item: str) -> int:
    raise InputError(item, "no such file", "a file")


def killed(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_ray(function, items):
    return list(workers.map_in_order(function, items, 2, runner="ray"))


def test_a_process_that_is_killed_is_survived(cluster, tmp_path):
    again = functools.partial(dying, abs, 0, tmp_path / "died")
    assert on_ray(again, range(6)) == list(range(6))
    assert (tmp_path / "died").exists()


def test_an_error_of_a_task_is_raised_as_here(cluster):
    with pytest.raises(InputError, match=r"^file 7: is wrong; another$"):
        on_ray(refuse, [7])
    with pytest.raises(ValueError, match="invalid literal"):
        on_ray(int, ["x"])


def test_a_task_that_dies_again_and_again_ends_the_run_in_one_line(cluster):
    with pytest.raises(InputError, match=r"^a Ray task: died 4 times .*more memory$"):
        on_ray(killed, [0])


def test_a_file_that_another_node_lacks_names_the_shared_file_system(cluster, tmp_path):
    (tmp_path / "here").touch()
    with pytest.raises(InputError, match=r"here: is not there on another node; .* a file system that they share"):
        on_ray(lacks, [str(tmp_path / "here")])
    with pytest.raises(InputError, match="nowhere: no such file; a file"):
        on_ray(lacks, [str(tmp_path / "nowhere")])


def test_an_address_where_no_cluster_answers_is_one_line():
    script = "from onerec.cli import cli\nfrom onerec.workers import map_in_order\n"
    script += "cli(lambda: print(*map_in_order(abs, [1], 1, runner='ray')))()"
    with socket.socket() as deaf:  # nobody else gets its port meanwhile
        deaf.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        environment = os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: RAY_ADDRESS: no Ray cluster answers at {address}"), done.stderr


def test_a_task_that_a_node_has_no_memory_for_ends_the_run_in_one_line(tmp_path):
    script = "import time\nfrom onerec.cli import cli\nfrom onerec.workers import map_in_order\n"
    script += "cli(lambda: print(*map_in_order(time.sleep, [600], 1, runner='ray')))()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
        "PYTHONPATH": str(ROOT),
        # Whatever runs is too much, and is killed at once.
        "RAY_memory_usage_threshold": "0.001",
        "RAY_memory_monitor_refresh_ms": "50",
        "RAY_task_oom_retry_delay_base_ms": "1",
    }
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "\nerror: a Ray task: died 4 times (OutOfMemoryError); nodes that live, fewer tasks" in done.stderr


# Works a while on a cluster of its own.
SCRIPT = """
import time
from onerec.cli import cli
from onerec.workers import map_in_order

def main():
    for pid in map_in_order(lambda item: item and time.sleep(3600), range(9), 2, runner="ray"):
        print("begun", flush=True)

if __name__ == "__main__":
    cli(main)()
"""


def test_a_cluster_that_a_command_started_works_at_its_priority_and_no_process_of_it_stays(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(tmp_path / "script.py")]
    with started(command, env=environment, stdout=-1, text=True) as run:
        assert any(line == "begun\n" for line in run.stdout)
        # One that a raylet has just forked still calls itself as it does.
        assert wait_until(lambda: sum("/raylet/raylet " in line for line in command_lines(run.pid)) == 1)
        assert wait_until(lambda: [pid for pid in descendants(run.pid) if command_line(pid).startswith("ray::_call")])
        children = below(run.pid)
        worker = next(child for child in children if command_line(child.pid).startswith("ray::_call"))
        assert worker.nice() == psutil.Process(run.pid).nice()
        run.terminate()
        assert run.wait(300) == STOPPED
        assert not psutil.wait_procs(children, timeout=300)[1]
