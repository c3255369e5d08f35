"""From verl's checkpoint to a Hugging Face checkpoint that every other stage takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onerec.errors import InputError
from onerec.folders import atomic_path
from onerec.model_folder import loading
from onerec.run import read_json

if TYPE_CHECKING:
    import torch

_TRACKER = "latest_checkpointed_iteration.txt"


def last_checkpoint(checkpoints: Path) -> int | None:
    """The step of the newest whole checkpoint (verl notes it after writing all of it); None where there is none."""
    tracker = checkpoints / _TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text().strip()
    if not text.isdigit() or not (checkpoints / f"global_step_{text}").is_dir():
        what = f"names step {text or '(nothing)'}, which is not there"
        raise InputError(tracker, what, "a checkpoint folder beside it, or none of both")
    return int(text)


def processes_of(checkpoints: Path, step: int) -> int | None:
    """How many training processes wrote the checkpoint of ``step``, each its part; None where it does not say."""
    told = checkpoints / f"global_step_{step}" / "actor" / "fsdp_config.json"
    return read_json(told)["world_size"] if told.exists() else None


def export(checkpoints: Path, base_model: Path, output: Path, merge_ratio: float = 1.0) -> None:
    """Write ``output`` over an earlier export: the newest checkpoint's weights, the rest from ``base_model``.

    Tokenizer, chat template, generation configuration and sid_spec.json are the base model's files, byte for byte.
    ``merge_ratio`` below 1 writes (1 − ratio) × the base model's weights + ratio × the trained ones, the average of
    WiSE-FT (Wortsman et al., arXiv 2109.01903): most of what the stage brought for less of what it cost.
    """
    from safetensors.torch import save_file

    saved = _saved(checkpoints)
    weights = sorted([*saved.glob("*.safetensors"), *saved.glob("*.safetensors.index.json")])
    with atomic_path(output, ours=True) as folder:
        folder.mkdir(parents=True)
        for file in base_model.iterdir():
            if file.is_file() and ".safetensors" not in file.name and not file.name.startswith("."):
                shutil.copy2(file, folder / file.name)
        for file in weights:
            if merge_ratio == 1 or file.suffix != ".safetensors":
                shutil.copy2(file, folder / file.name)
            else:
                merged = dict(_merged(base_model, file, merge_ratio))
                save_file(merged, folder / file.name, metadata={"format": "pt"})


def merged_weights(checkpoints: Path, base_model: Path, merge_ratio: float) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that `export` writes, one after the other: a large model is one file, and every server reads it."""
    for file in sorted(_saved(checkpoints).glob("*.safetensors")):
        yield from _merged(base_model, file, merge_ratio)


def _saved(checkpoints: Path) -> Path:
    """The folder with the newest checkpoint's Hugging Face files."""
    step = last_checkpoint(checkpoints)
    if step is None:
        raise InputError(checkpoints, "holds no whole checkpoint", "train at least one step")
    saved = checkpoints / f"global_step_{step}" / "actor" / "huggingface"
    if not any(saved.glob("*.safetensors")):
        raise InputError(saved, "holds no *.safetensors", "a checkpoint saved with hf_model")
    return saved


def _merged(base_model: Path, trained: Path, ratio: float) -> Iterator[tuple[str, torch.Tensor]]:
    """One file of trained weights averaged with the base model's, in float32; kept in the trained type."""
    import torch
    from safetensors import safe_open

    places = {}
    for path in sorted(base_model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    with loading(trained, "a checkpoint that was written whole"):
        opened = safe_open(trained, "pt")
    with opened as weights:
        names = weights.keys()
        for name in names:
            if name not in places:
                raise InputError(base_model, f"has no weight {name} to average with", "--merge_ratio 1")
            tensor = weights.get_tensor(name)
            with safe_open(places[name], "pt") as file:
                yield name, torch.lerp(file.get_tensor(name).float(), tensor.float(), ratio).to(tensor.dtype)
