"""Loaded by verl in every process of a run, before the stage's own module: what all of them import, but quicker.

Importing verl's checkpoint engines imports vLLM where it is installed, for the engine of Ascend NPUs alone. A process
that generates with vLLM imports it when it starts.
"""

from __future__ import annotations

import importlib

from onerec.startup import load_transformers, quick_imports

load_transformers()
with quick_imports("vllm"):
    importlib.import_module("verl.checkpoint_engine")
