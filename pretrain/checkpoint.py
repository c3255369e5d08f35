"""A training's output folder: names, and checkpoints ``step<N>/global_step<N>/``, written whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onerec.content import model_digest
from onerec.errors import InputError
from onerec.folders import remove_folder
from onerec.model_folder import check_finite, loading, read_object, tensor_headers
from onerec.startup import load_transformers
from pretrain.sharding import read_trained

if TYPE_CHECKING:
    import torch

LOG, VALIDATION_LOG, TB_LOGS, HF = "train_log.jsonl", "validation_log.jsonl", "tb_logs", "hf"
WEIGHTS = "model.safetensors"
RUN, LOSS_STATE, TRAINER_STATE = "run.json", "loss_state.json", "trainer_state.json"
# Flags that say how a model came to be; paths and log intervals are the machine's business.
SETTINGS = "learning_rate min_lr lr_scheduler_type num_warmup_steps weight_decay beta1 beta2 clip_range"
SETTINGS = (*SETTINGS.split(), "gradient_accumulation_steps", "dropout", "attention_dropout", "seed")
_ROWS = ("world_size", "gradient_accumulation_steps")  # whose product is a step's rows
OLDER = "take an older step"
_OTHER = "take an older step, or its weights alone (without --resume_training_state, into another --output_dir)"
_BASE = "give the model that this run began from"
_STEP = re.compile(r"step(\d+)$")


def checkpoint_dir(output_dir: str | Path, step: int) -> Path:
    return Path(output_dir) / f"step{step}" / f"global_step{step}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("global_step"))


def whole_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of every whole checkpoint under ``output_dir``, oldest first.

    A checkpoint is renamed into place when all of it is written; one without run.json is another program's.
    """
    steps = [int(match[1]) for folder in Path(output_dir).glob("step*") if (match := _STEP.match(folder.name))]
    found = [(step, checkpoint_dir(output_dir, step)) for step in sorted(steps)]
    return [(step, folder) for step, folder in found if (folder / RUN).is_file()]


def keep_newest(output_dir: str | Path, count: int, step: int) -> None:
    """Remove all but the newest ``count`` checkpoints up to ``step``; ``count`` < 1 keeps them all.

    Those behind ``step`` were there before a run that went on from an older one; they do not push out its own.
    """
    if count >= 1:
        written = [folder for found, folder in whole_checkpoints(output_dir) if found <= step]
        for folder in written[:-count]:
            remove_folder(folder.parent)


def find_checkpoint(resume_from: str, tag: str | None, output_dir: str | Path) -> Path | None:
    """The checkpoint that ``--resume_from`` means: ``auto`` is the newest of ``output_dir`` (None where there is none).

    Otherwise a run's output folder (its newest), a ``step<N>`` folder or a ``global_step<N>`` folder.
    """
    if resume_from == "auto":
        found = whole_checkpoints(output_dir)
        for half in [] if found else Path(output_dir).glob("step*/global_step*"):
            what = f"has no {RUN}, so it is no whole checkpoint"
            raise InputError(half, what, "remove it, or start over with --overwrite")
        return found[-1][1] if found else None
    folder = Path(resume_from) / (tag or "")
    newest = [path for _, path in whole_checkpoints(folder)[::-1]]
    for candidate in (folder, *sorted(folder.glob("global_step*")), *newest):
        if (candidate / RUN).is_file():
            return candidate
    raise InputError(folder, "holds no whole checkpoint", "give an output_dir, its step<N>, or step<N>/global_step<N>")


def check_training_state(checkpoint: Path) -> None:
    """Raise `InputError` where a file is missing from which the run that wrote a checkpoint would go on.

    Without it the optimizer, the schedule, the random states or the place in the data would begin afresh, in silence.
    """
    run, state = (read_object(checkpoint / name) for name in (RUN, TRAINER_STATE))
    world, rows, shards = (run.get(name) for name in (*_ROWS, "sharding"))
    counts = type(world) is type(rows) is int and world > 0
    if not counts or f"global_step{state.get('global_step')}" != checkpoint.name:
        raise InputError(checkpoint, f"its {RUN} and {TRAINER_STATE} are not those of this step", _OTHER)
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
    before = read_object(checkpoint / RUN)
    check_same_rows(checkpoint, before, run)
    changed = sorted(key for key in run if before.get(key) != run[key] and key not in _ROWS)
    if (before.get("sharding"), run["sharding"]) == ("fsdp2", None):
        changed.remove("sharding")
    for key in changed[:1]:
        same = {"model": "give the model that it began from", "dataset": "give the data that it began with"}
        what = f"comes from a run with another {key} ({before.get(key)}, now {run[key]})"
        right = f"{same.get(key, 'resume with the same settings')}, or start over (--overwrite)"
        raise InputError(checkpoint, what, right)


def check_same_rows(checkpoint: Path, before: dict[str, Any], run: dict[str, Any]) -> None:
    """Raise `InputError` where a step of ``run`` has not the rows that one had before, or ZeRO has other processes."""
    (processes, rows), (now, rows_now) = ([kept.get(name) for name in _ROWS] for kept in (before, run))
    weights = "begin from its weights (convert_checkpoint_to_hf.sh, then --model_dir)"
    if processes != now and str(before.get("sharding")).startswith("zero"):
        what = f"holds ZeRO's shards of {processes} processes, which no other number can read; now there are {now}"
        raise InputError(checkpoint, what, f"resume with as many, or {weights}; --fsdp's shards fit any number")
    if processes * rows == now * rows_now:
        return
    what = f"comes from a run of {processes} processes x {rows} rows a step, now {now} x {rows_now}"
    right = f"--gradient_accumulation_steps {processes * rows // now}"
    if processes * rows % now:
        right = f"as many processes, or another number that divides {processes * rows}"
    raise InputError(checkpoint, what, f"{right}; or {weights}")


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights of an unsharded checkpoint by Hugging Face names."""
    from safetensors.torch import load_file

    if not (checkpoint / WEIGHTS).is_file():
        raise InputError(checkpoint, f"has no {WEIGHTS}", "give a whole checkpoint of train.py")
    tensor_headers(checkpoint / WEIGHTS)
    with loading(checkpoint / WEIGHTS, "resume from an older step"):
        return load_file(checkpoint / WEIGHTS)


def checkpoint_state(folder: Path, base_dir: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint by Hugging Face names, whole or in shards; what it does not hold was frozen.

    Raises `InputError` where the parts are not those of ``base_dir``, the model that the run began from.
    """
    trained = read_trained(folder)
    if trained is None:
        return read_weights(folder)
    run = read_object(folder / RUN)
    if run.get("trained_rows") is None:
        return {name.removeprefix("lm."): tensor for name, tensor in trained.items()}
    if run.get("model") != model_digest(base_dir):
        raise InputError(folder, f"does not fit {base_dir}: it began from another model", _BASE)
    import torch

    from pretrain.model import PackedLM, load_lm

    with loading(folder, "a checkpoint of this model"), torch.no_grad():
        model = PackedLM(load_lm(base_dir), tuple(run["trained_rows"]))
        for name, tensor in trained.items():
            getattr(model, name).copy_(tensor)
    return model.state()


def lm_of_checkpoint(folder: Path, base_dir: Path) -> Any:
    """The LM that a checkpoint holds, float32; raises `InputError` where it does not fit ``base_dir``."""
    import torch

    load_transformers()
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    state = checkpoint_state(folder, base_dir)
    with loading(base_dir), torch.device("meta"):
        config = AutoConfig.from_pretrained(base_dir, trust_remote_code=False)
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if given != wanted:
        name = min(set(given.items()) ^ set(wanted.items()))[0]
        what = f"does not fit {base_dir}: {name} is {given.get(name, 'absent')}, not {wanted.get(name, 'known')}"
        raise InputError(folder, what, _BASE)
    check_finite(folder, state.items())
    lm.load_state_dict(state, assign=True)
    lm.tie_weights()
    if (Path(base_dir) / "generation_config.json").is_file():
        lm.generation_config = GenerationConfig.from_pretrained(base_dir)
    return lm
