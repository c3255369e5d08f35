"""Importing transformers and verl in 60 % of the time, which matters where a chain has many processes that do it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType

GENERATION = "transformers.generation.utils"


@contextlib.contextmanager
def quick_imports(*unused: str) -> Iterator[None]:
    """Within it, packages named ``unused`` cannot be found, for those that import them only where they are installed.

    Later imports of them work. The garbage collector is off meanwhile: it would walk over a million new objects again
    and again.
    """
    hidden, collecting = [name for name in unused if name not in sys.modules], gc.isenabled()
    gc.disable()
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # an import of it, and a search for it, find nothing
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collecting:
            gc.enable()


def load_transformers() -> ModuleType:
    """Import transformers with what its models need, and return it; call this before ``from transformers import``.

    Without scikit-learn, and scipy with it, which it imports for one function of assisted decoding.
    """
    if GENERATION not in sys.modules:
        with quick_imports("sklearn", "scipy"):
            importlib.import_module(GENERATION)
    return sys.modules["transformers"]
