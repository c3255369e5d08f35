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


class _CpuModule(types.ModuleType):
    """``torch.cuda``'s functions that verl calls, for the CPU; anything else is ``torch.cpu``'s."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


def _device_module() -> types.ModuleType:
    module = _CpuModule("onerec_verl_cpu_device")
    nothing = (
        "empty_cache",
        "ipc_collect",
        "reset_peak_memory_stats",
        "synchronize",
        "set_device",
        "manual_seed",
        "manual_seed_all",
        "set_per_process_memory_fraction",
    )
    zero = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    values = {name: None for name in nothing} | {name: 0 for name in zero}
    values |= {
        "is_available": False,
        "device_count": 1,
        "current_device": torch.device("cpu"),
        "mem_get_info": (_MEMORY, _MEMORY),
        "get_device_name": "cpu",
    }
    for name, value in values.items():
        setattr(module, name, lambda *args, _value=value, **kwargs: _value)
    module.get_rng_state = lambda device=None: torch.get_rng_state()
    module.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    return module


_DEVICE_MODULE = _device_module()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """verl's `PlatformBase` on plain torch: gloo for collectives, shared memory instead of IPC for weights."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: _DEVICE_MODULE)

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return True

    def current_device(self) -> Any:
        return torch.device("cpu")

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def rollout_env_vars(self) -> dict[str, str]:
        return {}

    def cudart(self) -> Any:
        return None


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
    for model_type, engine in (
        ("language_model", fsdp.FSDPEngineWithLMHead),
        ("value_model", fsdp.FSDPEngineWithValueHead),
    ):
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
