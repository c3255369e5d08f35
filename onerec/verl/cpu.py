"""verl's platform for machines without an accelerator; loaded by verl itself, in every process of a run.

`onerec.verl.launch` names this module in ``VERL_USE_EXTERNAL_MODULES`` together with ``VERL_PLATFORM=cpu``, and only
where there is no accelerator. verl asks a platform for collectives, memory and random numbers; Ray's "GPU" is a slot
for a process here. Importing it takes torch and verl, so nothing else in the project imports it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

from onerec.verl.launch import check_version

# What verl reports as free and total memory; nothing on a CPU decides by it.
_MEMORY = 8 << 30

check_version()


def _always(value: Any) -> Any:
    """A method, or a function of ``torch.cuda``, that gives ``value`` whatever it is asked."""
    return lambda *args, **kwargs: value


class _CpuModule(types.ModuleType):
    """``torch.cuda``'s functions that verl calls, for the CPU; anything else is ``torch.cpu``'s."""

    empty_cache = ipc_collect = reset_peak_memory_stats = synchronize = set_device = staticmethod(_always(None))
    manual_seed = manual_seed_all = set_per_process_memory_fraction = staticmethod(_always(None))
    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(_always(0))
    is_available, device_count = staticmethod(_always(False)), staticmethod(_always(1))
    current_device, get_device_name = staticmethod(_always(torch.device("cpu"))), staticmethod(_always("cpu"))
    mem_get_info = staticmethod(_always((_MEMORY, _MEMORY)))
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


_DEVICE_MODULE = _CpuModule("onerec_verl_cpu_device")


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's `PlatformBase` on plain torch: gloo for collectives, shared memory instead of IPC for weights."""

    device_name = vendor_name = property(_always("cpu"))
    device_module = property(_always(_DEVICE_MODULE))
    is_available = is_platform_available = _always(True)
    is_ipc_supported = _always(False)
    current_device, device_count = _always(torch.device("cpu")), _always(1)
    set_device = synchronize = set_allocator_settings = empty_cache = _always(None)
    profiler_start = profiler_stop = cudart = _always(None)
    get_device_capability = _always((None, None))
    communication_backend_name = _always("gloo")
    visible_devices_envvar = _always("CUDA_VISIBLE_DEVICES")
    ray_resource_name = _always("GPU")

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def rollout_env_vars(self) -> dict[str, str]:
        return {}


def _accept_cpu_twice() -> None:
    """verl asks for the backend ``cpu:gloo,<device>:<backend>``; with the CPU as the device torch refuses that."""
    original = torch.distributed.init_process_group
    if hasattr(original, "onerec_original"):
        return

    @functools.wraps(original)
    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    init_process_group.onerec_original = original  # type: ignore[attr-defined]
    torch.distributed.init_process_group = init_process_group


def _register_engines() -> None:
    """The FSDP2 engines for the CPU; without an accelerator there is no memory to pin for offloading.

    Importing the engines asks for the platform, so this comes after its registration.
    """
    import verl.workers.engine.fsdp.transformer_impl as fsdp
    from torch.distributed.fsdp import CPUOffloadPolicy
    from verl.workers.engine.base import EngineRegistry

    fsdp.CPUOffloadPolicy = lambda pin_memory=True: CPUOffloadPolicy(pin_memory=False)
    engines = {"language_model": fsdp.FSDPEngineWithLMHead, "value_model": fsdp.FSDPEngineWithValueHead}
    for model_type, engine in engines.items():
        EngineRegistry.register(model_type=model_type, backend=["fsdp", "fsdp2"], device=["cpu"])(engine)


def _keep_weights_loadable() -> None:
    """In a vLLM worker: no linear layer on a packed copy of its weights.

    vLLM's CPU layers copy their weights into a oneDNN, AMX or Zen form when a model is loaded and drop, or no longer
    read, what they came from; weights that training sends later would be refused or, in the output layer, ignored. verl
    is imported in that process (for its worker extension) before the model is loaded.
    """
    if "vllm" not in sys.modules:
        return
    import vllm._custom_ops
    import vllm.model_executor.layers.utils as layers
    from vllm.platforms import current_platform

    vllm._custom_ops._supports_onednn = False
    layers.check_cpu_sgl_kernel = lambda *args, **kwargs: False
    type(current_platform).is_zen_cpu = lambda self: False


_accept_cpu_twice()
_register_engines()
_keep_weights_loadable()
