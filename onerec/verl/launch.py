"""How a verl run starts, on GPUs or on none: preflight checks, environment, overrides, command. No torch, no verl here.

A stage on verl (distillation, GRPO) makes its own overrides, checks its inputs with `check_model`, `check_data` and
`onerec.verl.cluster.fit`, and calls `launch`, which adds what Ray and a CPU need, prints the whole command and runs it.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onerec.distributed.tasks import ON_A_BUSY_MACHINE
from onerec.errors import DISK_FULL, InputError
from onerec.files import SID_SPEC
from onerec.folders import locked
from onerec.keeper import owned
from onerec.model_folder import ModelFolder, head_dim, open_model_folder
from onerec.parquet import count_rows, open_parquet
from onerec.run import read_json
from onerec.sid import SidSpec
from onerec.verl import forkserver
from onerec.verl.cluster import Pool, has_accelerator, ray_overrides

VERL_VERSION = "0.9.1"
IMPORTS, CPU_MODULE = "onerec.verl.imports", "onerec.verl.cpu"
# What most processes of a run import, and those that serve vLLM.
_PRELOADED = ("verl.trainer.main_ppo", "verl.trainer.ppo.v1", "verl.workers.engine_workers")
_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"
# The trainer of onerec.verl.trainer, by the name under which verl finds it.
WATCHED_TRAINER = "onerec_watched"
# verl's default is FSDP1.
TRAINING = "actor_rollout_ref.actor.strategy=fsdp2"
# Widths of an attention head that vLLM's CPU kernels know (vllm.v1.attention.backends.cpu_attn); on another the server
# dies at its start.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
ROOT = Path(__file__).resolve().parents[2]


def check_version() -> None:
    """Raises `InputError` where verl is missing or is not the version that this project extends."""
    try:
        found = importlib.metadata.version("verl")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("verl", "is not installed", "bash scripts/install.sh") from None
    if found != VERL_VERSION:
        what = f"is version {found}; its registries are known at {VERL_VERSION}"
        raise InputError("verl", what, f"pip install verl=={VERL_VERSION}")


# Preflight: what is wrong is said before Ray starts.


def check_model(path: Path, codebooks: SidSpec | None = None, vllm: bool = True) -> ModelFolder:
    """A whole model folder (`onerec.model_folder.open_model_folder`) with SIDs in its vocabulary.

    ``vllm``: vLLM is to serve it. Raises `InputError` where it has none, or those of another codebook than
    ``codebooks``.
    """
    model = open_model_folder(path)
    if model.spec is None:
        right = "expand its vocabulary (pretrain/scripts/expand_qwen3_vocab.sh)"
        raise InputError(path, f"has no {SID_SPEC}: its vocabulary holds no SIDs", right)
    if codebooks is not None and not model.spec.same_codebooks(codebooks):
        right = f"those of the data: {list(codebooks.codebook_sizes)}"
        raise InputError(path, f"has codebooks {list(model.spec.codebook_sizes)}", right)
    if vllm:
        check_head_size(path, model.config)
    return model


def check_head_size(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `InputError` where there is no GPU and vLLM's CPU kernels do not take this model's attention heads."""
    size = head_dim(config)
    if size and size not in CPU_HEAD_SIZES and not has_accelerator():
        known = ", ".join(map(str, CPU_HEAD_SIZES))
        raise InputError(path, f"has attention heads of {size}", f"one of {known}, those of vLLM on a CPU")


def check_data(path: Path, columns: Sequence[str]) -> int:
    """Rows of a Parquet file that has ``columns`` and is not empty; raises `InputError` otherwise."""
    open_parquet(path, list(columns))
    if not (rows := count_rows(path)):
        raise InputError(path, "has no rows", "make the data again")
    return rows


# The run.


def cpu_overrides() -> list[str]:
    """Hydra overrides for a machine without an accelerator, where processes stand for GPUs.

    No flash attention, so no packing; no compilation; float32, since such machines have no fast bfloat16; one worker
    for what a cluster spreads.
    """
    actor, ref, rollout = (f"actor_rollout_ref.{name}" for name in ("actor", "ref", "rollout"))
    lines = [
        "trainer.device=cpu",
        "data.dataloader_num_workers=0",
        "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        f"{actor}.fsdp_config.model_dtype=fp32",
        f"{rollout}.dtype=float32",
        f"{rollout}.enforce_eager=True",
        f"{rollout}.free_cache_engine=False",
        f"+{rollout}.enable_sleep_mode=False",
        f"{rollout}.checkpoint_engine.update_weights_bucket_megabytes=64",
        f"{rollout}.agent.num_workers=1",
        "reward.num_workers=1",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    ]
    for name in (actor, ref):
        lines += [f"+{name}.fsdp_config.mixed_precision.{part}_dtype=fp32" for part in ("param", "reduce")]
        lines += [f"{name}.use_torch_compile=False", f"{name}.fsdp_config.use_torch_compile=False"]
    return lines


def cpu_server(prefix: str, model: Path, tokens: int, sequences: int, tp_size: int) -> list[str]:
    """Overrides of a vLLM server on a CPU, of ``tp_size`` processes that share the model; ``prefix``: its settings.

    A model in one process is run by vLLM's engine itself: a worker beside it would import everything once more. The
    key-value cache has room for ``sequences`` sequences of ``tokens`` tokens in float32, at most 1 GiB or one sequence,
    whichever is more, since vLLM touches all of it at its start. VLLM_CPU_KVCACHE_SPACE (GiB) overrules it.
    """
    config = read_json(model / "config.json")
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or 0
    cached = heads * head_dim(config) * (config.get("num_hidden_layers") or 0)
    # Keys and values of 4 bytes; whole blocks, of at most 128 tokens, and vLLM keeps one for itself.
    sequence = 8 * cached * (tokens + 2 * 128)
    wanted = max(sequence, min(sequence * sequences, 1 << 30), 32 << 20) if sequence else 1 << 30
    settings = {"kv_cache_memory_bytes": wanted} | ({"distributed_executor_backend": "uni"} if tp_size == 1 else {})
    return [f"+{prefix}.engine_kwargs.vllm.{name}={value}" for name, value in settings.items()]


def environment(modules: Sequence[str], on_cpu: bool, slots: int = 1) -> dict[str, str]:
    """Variables of a run's processes; on a CPU a node's cores are shared by ``slots`` of them at once.

    ``modules`` register the stage's extensions, in every process that imports verl.
    """
    values = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VERL_USE_EXTERNAL_MODULES": ",".join([IMPORTS, *([CPU_MODULE] if on_cpu else []), *modules]),
        "HYDRA_FULL_ERROR": "1",
        "PYTHONUNBUFFERED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not on_cpu:
        return values
    values["VERL_PLATFORM"] = "cpu"
    values["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    # Ray's memory monitor counts the whole machine's memory and kills this run for what others take.
    values["RAY_memory_monitor_refresh_ms"] = "0"
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // slots)),
        "OMP_WAIT_POLICY": "passive",
        # vLLM would bind each worker to a NUMA node of its own, and a laptop has one; and it would keep a worker beside
        # its engine for the sake of that binding (`cpu_server`).
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        **ON_A_BUSY_MACHINE,
        # verl's queue wants eight threads to put small rows together, and warns at every put where there are fewer
        # cores.
        "TQ_NUM_THREADS": "1",
    }
    return values | {name: os.environ.get(name, default) for name, default in defaults.items()}


def command(overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]


def resolve(overrides: Sequence[str]) -> None:
    """Compose verl's configuration from the overrides; raises `InputError` for a name or value that is not its."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folder = Path(str(importlib.metadata.distribution("verl").locate_file("verl/trainer/config")))
    try:
        with initialize_config_dir(config_dir=str(folder), version_base=None):
            OmegaConf.to_container(compose("ppo_trainer", overrides=list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError("verl's configuration", str(error).splitlines()[0], "an override of verl 0.9.1") from None


# What Ray says where its node was not up within 30 seconds, which a busy machine may not have.
_LATE, _STARTS = "The current node timed out during startup", 3
# What a failed run's log says, in the order in which it is looked for, and what the user is told.
_FULL = ("no space left on the device", "free some space")
_CAUSES = (
    ("No space left on device", *_FULL),
    # What torch.save says where a file ends before it was written whole; the reason stays in C++.
    ("inline_container.cc", "a checkpoint could not be written whole", "free some space"),
    ("InputError: ", "", ""),
    (_LATE, f"Ray was not up within 30 seconds, {_STARTS} times", "less other work beside it"),
    ("EngineDeadError", "a rollout server died", "see the log"),
    ("ActorDiedError", "a worker process died (killed, or out of memory)", "see the log"),
    ("OutOfMemoryError", "out of memory", "smaller batches of tokens"),
)


class _Log:
    """A log file that a run survives: where it cannot be written (a full disk), that is said once."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab", buffering=0)
        self.disk_full = False

    def write(self, text: str) -> None:
        """Append; after the first failure nothing more is written."""
        if self._file.closed:
            return
        try:
            self._file.write(text.encode("utf-8"))
        except OSError as error:
            self.disk_full = error.errno in DISK_FULL
            print(f"warning: {self._path}: {error.strerror}; the log ends here", file=sys.stderr, flush=True)
            self.close()

    def close(self) -> None:
        self._file.close()


_GO_ON = "the same command goes on from the last checkpoint"
_ANY_ERROR = re.compile(r"(\w+(?:Error|Exception)): (.+)")


def launch(
    overrides: Sequence[str],
    modules: Sequence[str],
    pools: Sequence[Pool],
    output_dir: Path,
    dry_run: bool = False,
    extra_environment: Mapping[str, str] | None = None,
    busy: int | None = None,
    vllm: bool = True,
) -> int:
    """Run verl on ``pools``; the stage's overrides come after those of Ray and the CPU, so that they count.

    ``busy``: processes that compute at once, which on a CPU share a node's cores (all of ``pools``).
    ``vllm``: the run has servers of vLLM. On a CPU its processes share what they import (`onerec.verl.forkserver`).

    Prints the environment and the command; with ``dry_run`` nothing more. The run's output goes to standard output and
    to ``output_dir/verl.log``. Raises `InputError` in one line where verl ends badly: what happened, and that the same
    command goes on from the last checkpoint. Whatever ends this script ends the whole run (`onerec.keeper`). Returns 0.
    """
    check_version()
    on_cpu = not has_accelerator()
    variables = environment(modules, on_cpu, busy or sum(pool.gpus for pool in pools)) | dict(extra_environment or {})
    imports = ",".join([*_PRELOADED, *([_SERVER] if vllm else [])])
    python = forkserver.executable(imports) if on_cpu and forkserver.possible() else None
    full = [
        *ray_overrides(variables, pools, on_cpu, python),
        TRAINING,
        *(cpu_overrides() if on_cpu else []),
        *overrides,
    ]
    resolve(full)
    line = command([*full, f"hydra.run.dir={output_dir.resolve()}", "hydra.output_subdir=null"])
    print("+ " + " ".join(f"{k}={shlex.quote(v)}" for k, v in variables.items()) + " \\")
    print("  " + shlex.join(line), flush=True)
    if dry_run:
        return 0
    output_dir.mkdir(parents=True, exist_ok=True)
    # Ray compares its slots with this variable, even where there is no GPU.
    inherited = {name: value for name, value in os.environ.items() if not (on_cpu and name == "CUDA_VISIBLE_DEVICES")}
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    log, tail = output_dir / "verl.log", collections.deque[str](maxlen=400)
    with locked(output_dir), contextlib.closing(_Log(log)) as file:
        for _ in range(_STARTS):
            tail.clear()
            with owned(line, env=inherited | variables, what_next=_GO_ON, **pipe) as process:
                for text in process.stdout:
                    print(text, end="", flush=True)
                    file.write(text)
                    tail.append(text)
            if not process.returncode or not any(_LATE in text for text in tail):
                break
    if process.returncode:
        told = _FULL if file.disk_full else cause(tail)
        what, right = told or (f"verl ended with status {process.returncode}", "see the log")
        raise InputError(log, what, f"{right}; {_GO_ON}")
    return 0


def cause(lines: Sequence[str]) -> tuple[str, str] | None:
    """(what happened, what would be right) from the last lines of a run's log; None where they do not say."""
    for pattern, what, right in _CAUSES:
        for line in reversed(lines):
            if pattern in line:
                return (what, right) if what else (line.split(pattern, 1)[1].strip(), "see the log")
    for line in reversed(lines):
        if found := _ANY_ERROR.search(line):
            return f"{found[1]}: {found[2].strip()}", "see the log"
    return None
