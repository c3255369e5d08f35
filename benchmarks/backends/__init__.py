"""What runs the model under test: `hf` (Hugging Face, any device) or `vllm`, behind one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.backends.base import Backend
from onerec.errors import InputError

BACKENDS = ("hf", "vllm")


def open_backend(
    name: str,
    path: Path,
    tokenizer: Any,
    device: str = "auto",
    token_budget: int = 16384,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    precision: str = "auto",
) -> Backend:
    """The backend of a name; ``device`` is for hf, the two parallels are for vllm.

    Raises `InputError` where vLLM is asked for and not installed, and for a device that is not there.
    """
    if name == "hf":
        from benchmarks.backends.hf import HfBackend

        return HfBackend(path, tokenizer, device, token_budget, precision)
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        what = f"vLLM cannot be imported ({error})"
        raise InputError("--backend vllm", what, "install it (scripts/install.sh), or --backend hf") from None
    from benchmarks.backends.vllm import VllmBackend

    return VllmBackend(path, tensor_parallel, data_parallel, precision, token_budget)
