"""Where a verl run finds its GPUs: what fits is said before Ray starts, and what goes with a run."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import types

import pytest

from onerec.errors import InputError
from onerec.verl import cluster as verl_cluster
from onerec.verl.cluster import Pool, fit, quoted, ray_overrides


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with as many GPUs as its `nvidia-smi` lists, and a torch that was built for them."""
    monkeypatch.setattr(verl_cluster, "_cpu_build", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def of(gpus: int) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {i}: a card'\n" for i in range(gpus)))
        program.chmod(0o755)

    return of


def cluster(monkeypatch, *nodes: int) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(verl_cluster, "gpus_by_node", lambda: list(nodes))


def student(gpus: int = -1, nodes: int = 1, tensor_parallel: int = 1) -> Pool:
    return Pool("student", "--n_gpus", gpus, nodes, tensor_parallel)


def teacher(gpus: int = 1, nodes: int = 1, tensor_parallel: int = 1) -> Pool:
    return Pool("teacher", "--teacher_n_gpus", gpus, nodes, tensor_parallel)


def test_a_run_gets_what_the_others_leave(machine, monkeypatch):
    machine(8)
    assert fit(student(), teacher())[0].gpus == 7
    assert fit(student(tensor_parallel=2), teacher())[0].gpus == 6, "whole servers"
    assert fit(student())[0].gpus == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert fit(student(), teacher())[0].gpus == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert fit(student(), teacher())[0].gpus == 1, "a CPU has one process"
    assert fit(student(5, 2), teacher(3))[0].gpus == 5, "or as many as asked for"
    cluster(monkeypatch, 8, 8)
    assert fit(student(nodes=2), teacher())[0].gpus == 7
    assert fit(student(nodes=2), teacher(2, 1, 2))[0].gpus == 6
    assert fit(student(nodes=2, tensor_parallel=16))[0].gpus == 8


@pytest.mark.parametrize(
    ("cuda", "hip", "sees"), [("None", "None", False), ("'13.0'", "None", True), ("None", "'7.1'", True)]
)
def test_a_gpu_counts_where_torch_was_built_for_it(tmp_path, monkeypatch, cuda, hip, sees):
    """A laptop with a GPU and the CPU set is one without."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: a card'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    lines = f"cuda: Optional[str] = {cuda}\ngit_version = '1'\nhip: Optional[str] = {hip}\nxpu: Optional[str] = None\n"
    (tmp_path / "version.py").write_text(lines)
    torch = types.SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: torch)
    assert verl_cluster.has_accelerator() is sees


def test_pools_that_do_not_fit_together_are_refused_with_what_would(machine, monkeypatch):
    machine(8)
    with pytest.raises(
        InputError,
        match=r"^--n_gpus: 8 for the student, 1 for the teacher do not fit the GPUs of this machine \(8\); --n_gpus 7$",
    ):
        fit(student(8), teacher())
    with pytest.raises(
        InputError,
        match=r"2 × 8 for the student, 8 for the teacher do.*this machine \(8\); RAY_ADDRESS of a Ray",
    ):
        fit(student(8, 2), teacher(8))
    machine(1)
    with pytest.raises(InputError, match=r"1 for the student, 1 for the teacher do not fit .* \(1\); at least 2"):
        fit(student(), teacher())
    cluster(monkeypatch, 4, 4)
    # Eight of eight, but what a pool has on a node must lie on one.
    with pytest.raises(InputError, match=r"of the cluster's nodes \(4, 4, .*; --n_gpus 4$"):
        fit(student(6), teacher(2))
    with pytest.raises(InputError, match="of the cluster's nodes"):
        fit(student(3, 2), teacher(2))
    # Ray spreads the student over both nodes, and no node is left with two.
    cluster(monkeypatch, 2, 2)
    with pytest.raises(InputError, match="2 × 1 for the student, 2 for the teacher do not fit"):
        fit(student(1, 2), teacher(2))


def test_an_updates_rows_are_shared_alike_or_the_run_does_not_begin(machine, monkeypatch, capsys):
    """verl asserts it when it comes to the first update (`TrainingWorker.train_mini_batch`)."""

    def sharing(rows: int, gpus: int = -1, nodes: int = 1) -> Pool:
        return dataclasses.replace(student(gpus, nodes), rows=rows)

    machine(8)
    assert fit(sharing(252), teacher())[0].gpus == 7 and not capsys.readouterr().err
    # Distillation's defaults on a machine of eight.
    assert fit(sharing(256), teacher())[0].gpus == 4
    assert capsys.readouterr().err == (
        "warning: 4 for the student, since 7 GPUs do not share the 256 rows of an update alike; "
        "a --train_batch_size (or --mini_batch_size) whose rows they divide\n"
    )
    assert fit(sharing(256, 4), teacher())[0].gpus == 4
    with pytest.raises(InputError, match=r"^--n_gpus: 7 GPUs do not share the 256 rows of an update alike; a --train"):
        fit(sharing(256, 7), teacher())
    cluster(monkeypatch, 8, 8, 8)
    assert fit(sharing(72 * 32, nodes=3))[0].gpus == 8
    for gpus in (8, -1):  # GRPO's defaults on three nodes: any number of GPUs a node has a factor of three
        with pytest.raises(InputError, match=r"^--n_gpus: 24 GPUs do not share the 2048 rows of an update alike"):
            fit(sharing(64 * 32, gpus, 3))


def test_tensor_parallelism_must_divide_the_gpus_of_a_node_or_take_whole_nodes():
    for pool in (student(4, 2, 8), student(4, 2, 2), student(4, 2, 4)):
        assert pool.whole
    for pool in (student(4, 2, 3), student(3, 2, 2), student(4, 3, 8), student(4, 2, 6)):
        with pytest.raises(InputError, match="of the student does not divide"):
            fit(pool)
    with pytest.raises(InputError, match="at least 1 of each"):
        fit(student(), teacher(0))
    with pytest.raises(InputError, match="at least 1 of each"):
        fit(student(0))


def test_a_cluster_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr(verl_cluster, "_ASK", "raise ConnectionError")
    with pytest.raises(InputError, match=r"no Ray cluster answers at 127.0.0.1:1; the address of one"):
        fit(student())


def test_a_run_on_a_cluster_with_gpus_does_not_begin_on_a_node_without(machine, monkeypatch):
    """What Ray calls a GPU is any slot; a card also has a type."""
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(verl_cluster, "_ASK", "print('[[0, 96, false], [8, 96, false]]')")
    assert fit(student())[0].gpus == 8
    monkeypatch.setattr(verl_cluster, "_ASK", "print('[[0, 96, false], [8, 96, true]]')")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS: the cluster at head:6379 has GPUs, and this machine has none"):
        fit(student())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    machine(1)
    assert fit(student())[0].gpus == 8


def test_cores_are_counted_as_verl_asks_for_them():
    base = pytest.importorskip("verl.single_controller.ray.base")
    fields = base.ResourcePoolManager.__dataclass_fields__
    assert fields["max_colocate_count"].default == verl_cluster.CORES


def test_a_users_variables_go_to_the_workers_but_for_secrets_and_what_is_one_machines(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("WANDB_MODE", "WANDB_API_KEY", "VLLM_HOST_IP", "CUDA_VISIBLE_DEVICES", "HF_TOKEN"):
        monkeypatch.setenv(name, "there")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    variables = {"OMP_NUM_THREADS": "2", "PYTHONPATH": "/a b"}
    lines = ray_overrides(variables, [student(2, 2), teacher()], on_cpu=True)
    environment = "++ray_kwargs.ray_init.runtime_env.env_vars."
    passed = {line.removeprefix(environment) for line in lines if line.startswith(environment)}
    assert {'WANDB_MODE="there"', 'OMP_NUM_THREADS="2"', 'PYTHONPATH="/a b"'} <= passed
    names = {line.partition("=")[0] for line in passed}
    assert not names & {"WANDB_API_KEY", "VLLM_HOST_IP", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "PATH"}
    # A cluster of its own is told what it has; one that was there before must not be.
    assert {"++ray_kwargs.ray_init.address=local", "++ray_kwargs.ray_init.num_gpus=5"} <= set(lines)
    assert not any("num_gpus" in line for line in ray_overrides(variables, [student(2)], on_cpu=False))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert all(line.startswith(environment) for line in ray_overrides(variables, [student(2)], on_cpu=True))


def test_hydra_reads_back_what_was_quoted():
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser").OverridesParser.create()
    for text in (
        "",
        "0",
        "a b",
        'a"b',
        "a\\",
        'a\\"b',
        "\\\\",
        "it's",
        "a,b=c",
        "{x: 1}",
        "null",
        "C:\\x",
        'ü"',
    ):
        assert parser.parse_override(f"++key={quoted(text)}").value() == text
