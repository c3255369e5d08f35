"""Checkpoints written beside the training, which stands still only while their copy is made in the CPU's memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

if TYPE_CHECKING:
    from transformers import Trainer


class Saver:
    """One thread that writes, one checkpoint at a time; what it raises comes up in the training's own thread.

    The copies' memory (pinned beside a GPU) is kept from one checkpoint to the next.
    """

    def __init__(self) -> None:
        gpu = torch.cuda.is_available()
        how = {"use_pinned_memory": gpu, "use_non_blocking_copy": gpu}
        self._stager = DefaultStager(StagingOptions(**how, use_shared_memory=False, use_async_staging=False))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writes: Future[None] | None = None

    def copy(self, state: Any) -> Any:
        """``state`` with all its tensors copied to the CPU; valid until the next call."""
        self.wait()
        return self._stager.stage(state)

    def start(self, write: Callable[[], None]) -> None:
        """Have ``write()`` run, behind the one before."""
        self.wait()
        self._writes = self._thread.submit(write)

    def check(self) -> None:
        """Raise what a write that is over has raised."""
        if self._writes is not None and self._writes.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written; raises what the write has raised."""
        writes, self._writes = self._writes, None
        if writes is not None:
            writes.result()


def flush(folder: Path) -> None:
    """Return when all that this machine has written into ``folder`` is on disk.

    A name outlives the machine that gives it; what only stands in its memory does not.
    """
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process has put its file in place
            if path.is_file():
                file = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)


def named_state(trainer: Trainer) -> dict[str, Any]:
    """Trained parameters (float32) and AdamW's state by the parameters' names, in place: loading fills the tensors.

    ``{"model": {name: tensor}, "optimizer": {name: {"step", "exp_avg", "exp_avg_sq"}}}``
    """
    optimizer, masters = trainer.optimizer.optimizer, trainer.model.masters
    model = {name: masters.get(p, p) for name, p in trainer.model.named_parameters() if p.requires_grad}
    state = {}
    for name, parameter in model.items():
        kept = optimizer.state[parameter]
        if not kept:  # before the first step
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            kept["step"] = torch.zeros((), device=local.device)
            kept["exp_avg"], kept["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state[name] = kept
    return {"model": model, "optimizer": state}
