"""From verl's checkpoint to a Hugging Face checkpoint that every other stage takes."""

from __future__ import annotations

import shutil
from pathlib import Path

from onerec.errors import InputError
from onerec.run import atomic_path

_TRACKER = "latest_checkpointed_iteration.txt"


def last_checkpoint(checkpoints: Path) -> int | None:
    """The step of the newest whole checkpoint (verl notes it after writing all of it); None where there is none."""
    tracker = checkpoints / _TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text().strip()
    if not text.isdigit() or not (checkpoints / f"global_step_{text}").is_dir():
        raise InputError(
            tracker,
            f"names step {text or '(nothing)'}, which is not there",
            "a checkpoint folder beside it, or none of both",
        )
    return int(text)


def export(checkpoints: Path, base_model: Path, output: Path) -> None:
    """Write ``output``: the newest checkpoint's weights and configuration, everything else from ``base_model``.

    Tokenizer, chat template, generation configuration and sid_spec.json are the base model's files, byte for byte.
    """
    step = last_checkpoint(checkpoints)
    if step is None:
        raise InputError(checkpoints, "holds no whole checkpoint", "train at least one step")
    saved = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    weights = sorted([*saved.glob("*.safetensors"), *saved.glob("*.safetensors.index.json")])
    if not weights:
        raise InputError(saved, "holds no *.safetensors", "a checkpoint saved with hf_model")
    with atomic_path(output) as folder:
        folder.mkdir(parents=True)
        for file in base_model.iterdir():
            if file.is_file() and ".safetensors" not in file.name and not file.name.startswith("."):
                shutil.copy2(file, folder / file.name)
        for file in weights:
            shutil.copy2(file, folder / file.name)
