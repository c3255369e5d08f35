"""Where a verl run finds its GPUs: on this machine, or on a Ray cluster started before (RAY_ADDRESS). No torch here.

Whether a run's pools of GPUs fit is said before verl starts; verl would refuse after Ray has started, or wait for ever.
Processes of such a cluster know nothing of this machine's environment, so the run carries its own with it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onerec.errors import InputError

# verl asks Ray for so many cores with every GPU of a pool (ResourcePoolManager.max_colocate_count) …
CORES = 3
# … and for one for its controller and each of its helpers.
_HELPERS = 10
_EVEN = "a --train_batch_size (or --mini_batch_size) whose rows they divide"
# Variables of a user's that a run's processes read, by how their names begin; not those of one machine (PATH, …).
_PASSED = (
    "VERL VLLM TQ OMP MKL HF TRANSFORMERS TOKENIZERS TORCH PYTORCH NCCL GLOO WANDB TENSORBOARD MLFLOW SWANLAB ONEREC"
)
_PASSED = tuple(f"{name}_" for name in _PASSED.split())
# Secrets would stand in the command and the log; a machine's address is its own.
_KEPT = re.compile(r"_(KEY|TOKEN|SECRET|PASSWORD|HOST_IP)$")
_ASK = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
cards = [any(name.startswith("accelerator_type:") for name in node) for node in nodes]
print(json.dumps([[int(node.get("GPU", 0)), int(node.get("CPU", 0)), card] for node, card in zip(nodes, cards)]))
"""


def has_accelerator() -> bool:
    """Whether this machine has a GPU that its driver answers for and that torch can use.

    False where ``CUDA_VISIBLE_DEVICES`` is empty and where torch is the CPU build: a laptop with the CPU set.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    smi = None if _cpu_build() else shutil.which("nvidia-smi") or shutil.which("rocm-smi")
    smi = smi or shutil.which("npu-smi")  # whose torch is the CPU build and a plug-in
    return bool(smi) and subprocess.run([smi], capture_output=True).returncode == 0


def _cpu_build() -> bool:
    """Whether the torch that is installed was built without a GPU's libraries; does not import it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text()
    return not re.search(r"^(?:cuda|hip|xpu)\b[^=]*= (?!None)", text, re.MULTILINE)


def gpu_memory() -> int | None:
    """Bytes of this machine's smallest GPU, as NVIDIA's driver says; None where it does not."""
    if not has_accelerator() or not (smi := shutil.which("nvidia-smi")):
        return None
    asked = [smi, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    return min((int(line) << 20 for line in lines if line.isdigit()), default=None)


def started_before() -> str | None:
    """Address of the Ray cluster that a run joins; None where it starts its own on this machine."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address


@dataclasses.dataclass(frozen=True)
class Pool:
    """GPUs of one part of a run (processes on a CPU): ``gpus`` on each of ``nodes`` nodes.

    ``tensor_parallel`` of them make a vLLM server. ``gpus`` -1: as many as there are beside the other pools. ``flag``
    sets ``gpus``. ``rows``: of an update, which all of them share alike (0: there is none); verl refuses others when it
    comes to the first update.
    """

    what: str
    flag: str
    gpus: int
    nodes: int
    tensor_parallel: int
    rows: int = 0

    def __str__(self) -> str:
        times = f"{self.nodes} × " if self.nodes > 1 else ""
        return f"{times}{self.gpus} for the {self.what}"

    @property
    def whole(self) -> bool:
        """Whether its servers fill it and none shares a node with a part of another."""
        on_node, rest = sorted((self.gpus, self.tensor_parallel))
        return self.gpus * self.nodes % self.tensor_parallel == 0 and rest % on_node == 0

    @property
    def even(self) -> bool:
        """Whether all of its GPUs get as many rows of an update."""
        return self.rows % (self.gpus * self.nodes) == 0

    @property
    def uneven(self) -> str:
        """That they do not, in words."""
        return f"{self.gpus * self.nodes} GPUs do not share the {self.rows} rows of an update alike"


def fit(first: Pool, *others: Pool) -> list[Pool]:
    """The pools as they will be, the first with its number of GPUs; raises `InputError` where they do not fit."""
    for pool in (first, *others):
        size, nodes, gpus = pool.tensor_parallel, pool.nodes, pool.gpus
        if min(nodes, size) < 1 or (gpus < 1 and (pool != first or gpus != -1)):
            what = f"the {pool.what} has {nodes} nodes of {gpus} GPUs and tensor parallelism {size}"
            raise InputError(pool.flag, what, "at least 1 of each")
        if gpus > 0 and not pool.whole:
            what = f"tensor parallelism {size} of the {pool.what} does not divide {nodes} × {gpus} GPUs"
            raise InputError(pool.flag, what, "a divisor of a node's GPUs, or whole nodes")
        if gpus > 0 and not pool.even:
            raise InputError(pool.flag, pool.uneven, _EVEN)
    nodes = gpus_by_node()
    if nodes is None:
        return [first if first.gpus > 0 else dataclasses.replace(first, gpus=first.tensor_parallel), *others]
    sizes = (dataclasses.replace(first, gpus=gpus) for gpus in range(max(nodes, default=0), 0, -1))
    fitting = [pool for pool in sizes if pool.whole and _packs([pool, *others], nodes)]
    largest = next((pool for pool in fitting if pool.even), None)
    if first.gpus == -1 and fitting:
        if largest is None:
            raise InputError(first.flag, fitting[0].uneven, _EVEN)
        if largest != fitting[0]:
            print(f"warning: {largest}, since {fitting[0].uneven}; {_EVEN}", file=sys.stderr)
        return [largest, *others]
    if first.gpus > 0 and _packs([first, *others], nodes):
        return [first, *others]
    wanted = [dataclasses.replace(first, gpus=first.tensor_parallel) if first.gpus == -1 else first, *others]
    listed = ", ".join(map(str, nodes)) or "none"
    where = (
        f"the cluster's nodes ({listed}, with {CORES} cores each)" if started_before() else f"this machine ({listed})"
    )
    if largest:
        right = f"{first.flag} {largest.gpus}"
    elif not started_before() and any(pool.nodes > 1 for pool in wanted):
        right = "RAY_ADDRESS of a Ray cluster over the nodes (scripts/ray_start.sh, scripts/ray_slurm.sh)"
    else:
        right = f"at least {sum(pool.gpus * pool.nodes for pool in wanted)}, or a smaller tensor parallelism"
    raise InputError(first.flag, f"{', '.join(map(str, wanted))} do not fit the GPUs of {where}", right)


def _packs(pools: Sequence[Pool], nodes: Sequence[int]) -> bool:
    """Whether Ray places the pools: in verl's order, each node's part where the most room is."""
    free = list(nodes)
    for pool in pools:
        for _ in range(pool.nodes):
            most = max(free, default=0)
            if most < pool.gpus:
                return False
            free[free.index(most)] -= pool.gpus
    return True


def gpus_by_node() -> list[int] | None:
    """GPUs that verl can use on each node of the cluster, or on this machine; None on a CPU, where any number will do.

    Raises `InputError` where the cluster does not answer, or has GPUs and this machine, by which a run is one for GPUs
    or for CPUs, has none.
    """
    if address := started_before():
        try:
            done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=120)
            found = json.loads(done.stdout.splitlines()[-1])
        except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError):
            one = "the address of one (scripts/ray_start.sh, scripts/ray_slurm.sh)"
            right = f"{one}, or unset, for a run on this machine alone"
            raise InputError("RAY_ADDRESS", f"no Ray cluster answers at {address}", right) from None
        if any(card for *_, card in found) and not has_accelerator():
            what = f"the cluster at {address} has GPUs, and this machine has none: the run would use the cluster's CPUs"
            raise InputError("RAY_ADDRESS", what, "the same command on a node with GPUs")
        return [min(gpus, cores // CORES) for gpus, cores, _ in found]
    if not has_accelerator() or not (smi := shutil.which("nvidia-smi")):
        return None
    listed = subprocess.run([smi, "-L"], capture_output=True, text=True).stdout
    found = sum(line.startswith("GPU ") for line in listed.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [found if visible is None else min(found, len(visible.split(",")))] if found else None


def ray_overrides(
    variables: Mapping[str, str], pools: Sequence[Pool], on_cpu: bool, python: str | None = None
) -> list[str]:
    """Hydra overrides for verl's `ray.init`: ``variables`` and the user's own for every worker, and its resources.

    ``python``: the command that runs Ray's workers (`onerec.verl.forkserver`); None: Ray's own.
    """
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED) and not _KEPT.search(name)}
    init, carried = "ray_kwargs.ray_init", passed | dict(variables)
    lines = [f"++{init}.runtime_env.env_vars.{name}={quoted(value)}" for name, value in carried.items()]
    lines += [f"++{init}.runtime_env.py_executable={quoted(python)}"] if python else []
    if started_before():
        return lines
    slots = sum(pool.gpus * pool.nodes for pool in pools)
    # Of cores more than there are: verl's actors mostly wait.
    cores = max(os.cpu_count() or 1, CORES * slots + _HELPERS)
    # `local`: never a cluster that somebody left on this machine.
    lines += [f"++{init}.address=local", f"{init}.num_cpus={cores}"]
    return lines + ([f"++{init}.num_gpus={slots}", f"++{init}.include_dashboard=False"] if on_cpu else [])


def quoted(value: str) -> str:
    """A string in hydra's grammar of overrides: in double quotes, where backslashes count before a quote only."""
    return '"' + re.sub(r'(\\*)("|\Z)', lambda run: run[1] * 2 + ('\\"' if run[2] else ""), value) + '"'
