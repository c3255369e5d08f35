"""Importing transformers in 60 % of the time, which matters where a chain of scripts has many that import it."""

from __future__ import annotations

import gc
import importlib
import sys
from types import ModuleType

UNUSED = "sklearn"


def load_transformers() -> ModuleType:
    """Import transformers with what its models need, and return it; call this before ``from transformers import``.

    Two things make it slow. It imports scikit-learn, and scipy with it, for one function of assisted decoding: hidden
    while it loads (later imports of scikit-learn work). And the garbage collector walks over a million new objects
    again and again: off meanwhile.
    """
    if "transformers.generation.utils" in sys.modules:
        return sys.modules["transformers"]
    hidden, collecting = UNUSED not in sys.modules, gc.isenabled()
    gc.disable()
    if hidden:
        sys.modules[UNUSED] = None  # type: ignore[assignment]  # an import, and a look whether it is there, find nothing
    try:
        importlib.import_module("transformers.generation.utils")
        return importlib.import_module("transformers")
    finally:
        if hidden:
            del sys.modules[UNUSED]
        if collecting:
            gc.enable()
