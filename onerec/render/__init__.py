"""What a backbone writes around a conversation: turn marks, think marks, where it stops, which tokens it learns.

A renderer a family of models; `RENDERERS` is the one list of the families that every stage knows.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from onerec.errors import InputError
from onerec.render.base import (  # noqa: F401 (what others take from here)
    THINK_CLOSE,
    THINK_OPEN,
    Messages,
    Renderer,
    message_text,
    split_thinking,
    with_thinking,
)
from onerec.render.qwen3 import Qwen3
from onerec.run import read_json

# By the `model_type` of config.json. A new family is a file beside qwen3.py and one entry here.
RENDERERS: dict[str, Renderer] = {renderer.model_type: renderer for renderer in (Qwen3(),)}


# What no text of a record may hold, whichever family reads it later.
CHAT_MARK = re.compile("|".join(re.escape(mark) for renderer in RENDERERS.values() for mark in renderer.marks))


def renderer_of(folder: str | Path, config: Any = None) -> Renderer:
    """The renderer of the checkpoint in ``folder``, by its ``config.json`` (``config``, where that was read already).

    Raises `InputError` where the family is not a known one.
    """
    config = read_json(Path(folder) / "config.json") if config is None else config
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(model_type, str) or model_type not in RENDERERS:
        what = "its config.json has no model_type" if model_type is None else f"is a {model_type}"
        raise InputError(folder, what[:200], f"a family with a renderer: {', '.join(RENDERERS)}")
    return RENDERERS[model_type]
