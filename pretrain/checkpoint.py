"""Checkpoint directories of a training run.

They are ``output_dir/step<N>/global_step<N>/``, written whole or not at all, the newest kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from onerec.errors import InputError
from onerec.folders import remove_folder
from onerec.model_folder import loading, read_object, tensor_headers

WEIGHTS = "model.safetensors"
RUN, LOSS_STATE = "run.json", "loss_state.json"
_OTHER = "take an older step, or its weights alone (without --resume_training_state, into another --output_dir)"
_STEP = re.compile(r"step(\d+)$")


def checkpoint_dir(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return Path(output_dir) / f"step{step}" / f"global_step{step}"


def whole_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint under ``output_dir``, oldest first.

    A checkpoint is renamed into place when all of it is written, so one that is there is whole; what has no run.json is another's.
    """
    found = []
    for folder in Path(output_dir).glob("step*"):
        match = _STEP.match(folder.name)
        if match and ((inner := checkpoint_dir(output_dir, int(match.group(1)))) / RUN).is_file():
            found.append((int(match.group(1)), inner))
    return sorted(found)


def keep_newest(output_dir: str | Path, count: int) -> None:
    """Remove all but the newest ``count`` checkpoints; ``count`` < 1 keeps them all."""
    if count >= 1:
        for _, folder in whole_checkpoints(output_dir)[:-count]:
            remove_folder(folder.parent)


def find_checkpoint(resume_from: str, tag: str | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that ``--resume_from`` means: ``auto`` is the newest of ``output_dir`` (None where there is none).

    Otherwise a run's output folder (its newest), a ``step<N>`` folder or a ``global_step<N>`` folder.
    """
    if resume_from == "auto":
        found = whole_checkpoints(output_dir)
        for half in [] if found else Path(output_dir).glob("step*/global_step*"):
            raise InputError(
                half,
                f"has no {RUN}, so it is no whole checkpoint",
                "remove it, or start over with --overwrite",
            )
        return found[-1][1] if found else None
    folder = Path(resume_from)
    if tag:
        folder = folder / tag
    candidates = [
        folder,
        *sorted(folder.glob("global_step*")),
        *(path for _, path in whole_checkpoints(folder)[::-1]),
    ]
    for candidate in candidates:
        if (candidate / RUN).is_file():
            return candidate
    raise InputError(folder, "holds no whole checkpoint", "give an output_dir, its step<N>, or step<N>/global_step<N>")


def check_training_state(checkpoint: Path) -> None:
    """Raise `InputError` where a file is missing from which the run that wrote a checkpoint would go on.

    What is missing would begin afresh, in silence: the optimizer, the schedule, the random states, the place in the data.
    """
    run, state = (read_object(checkpoint / name) for name in (RUN, "trainer_state.json"))
    world, shards = run.get("world_size"), run.get("sharding")
    if type(world) is not int or world < 1 or f"global_step{state.get('global_step')}" != checkpoint.name:
        raise InputError(checkpoint, f"its {RUN} and trainer_state.json are not those of this step", _OTHER)
    needed = [LOSS_STATE, "scheduler.pt"]
    needed += ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]
    needed += [WEIGHTS, "optimizer.pt"] if shards is None else []
    for name in needed:
        if not (checkpoint / name).is_file():
            raise InputError(checkpoint, f"has no {name}, and the run cannot go on as if it were there", _OTHER)
    if shards and shards != "fsdp2" and len(list(checkpoint.glob("*optim_states.pt"))) < world:
        raise InputError(checkpoint, f"has not the optimizer states of {world} processes", _OTHER)


def check_same_run(checkpoint: Path, run: dict[str, Any]) -> None:
    """Raise `InputError` where a checkpoint comes from a run with other data, model or settings than ``run``."""
    # Checkpoints from before there was dropout do not name it.
    before = {"dropout": 0.0, "attention_dropout": 0.0} | read_object(checkpoint / RUN)
    changed = sorted(key for key in run if before.get(key) != run[key])
    if "world_size" in changed:
        raise InputError(
            checkpoint,
            f"comes from a run of {before.get('world_size')} processes, now there are {run['world_size']}",
            "resume with as many, or begin from its weights (convert_checkpoint_to_hf.sh, then --model_dir)",
        )
    if changed:
        key = changed[0]
        same = {"model": "give the model that it began from", "dataset": "give the data that it began with"}
        raise InputError(
            checkpoint,
            f"comes from a run with another {key} ({before.get(key)}, now {run[key]})",
            f"{same.get(key, 'resume with the same settings')}, or start over (--overwrite)",
        )


def read_weights(checkpoint: Path) -> dict[str, Any]:
    """Weights of a checkpoint by Hugging Face names."""
    from safetensors.torch import load_file

    if not (checkpoint / WEIGHTS).is_file():
        raise InputError(checkpoint, f"has no {WEIGHTS}", "give a whole checkpoint of train.py")
    tensor_headers(checkpoint / WEIGHTS)
    with loading(checkpoint / WEIGHTS, "resume from an older step"):
        return load_file(checkpoint / WEIGHTS)
