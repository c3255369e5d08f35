"""What the training engines of both stages add to verl's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead


def saved_until(actor: str) -> list[str]:
    """The folders ``global_step_<n>/actor`` beside and before this one, and itself; the oldest first."""
    newest = Path(actor)
    names = (folder.name.rpartition("_") for folder in newest.parent.parent.glob("global_step_*"))
    steps = sorted(int(step) for _, _, step in names if step.isdigit())
    last = int(newest.parent.name.rpartition("_")[2])
    folders = (newest.parent.with_name(f"global_step_{step}") / newest.name for step in steps if step <= last)
    return [str(folder) for folder in folders if folder.is_dir()]


class Engine(FSDPEngineWithLMHead):
    """verl's FSDP engine, which counts among the checkpoints that it keeps those that were there when it began.

    verl's counts its own alone, so that a run leaves as many behind each time that it is stopped and goes on.
    """

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's."""
        super().load_checkpoint(local_path, *args, **kwargs)
        self.checkpoint_manager.previous_saved_paths = saved_until(local_path)
