"""The training engine that both stages share, without a model."""

from __future__ import annotations

import pytest

pytest.importorskip("verl")


def test_a_run_that_goes_on_keeps_no_more_checkpoints_than_one_that_does_not(tmp_path, monkeypatch):
    import torch
    from verl.utils.checkpoint.checkpoint_manager import BaseCheckpointManager

    from onerec.verl.engine import Engine

    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    manager = BaseCheckpointManager.__new__(BaseCheckpointManager)
    manager.previous_saved_paths = []
    manager.load_checkpoint = lambda **_: None
    engine = Engine.__new__(Engine)
    engine.checkpoint_manager = manager
    engine._is_offload_param = engine._is_offload_optimizer = False
    for step in (50, 100, 150):  # the last was not whole when the run was stopped
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True)
    (tmp_path / "global_step_25").mkdir()  # what verl leaves of one that it removes

    def saved(step: int) -> list[int]:
        manager.ensure_checkpoint_capacity(2)
        (tmp_path / f"global_step_{step}" / "actor").mkdir(parents=True, exist_ok=True)
        manager.register_checkpoint(str(tmp_path / f"global_step_{step}" / "actor"), 2)
        return sorted(int(folder.parent.name.split("_")[2]) for folder in tmp_path.glob("*/actor"))

    engine.load_checkpoint(str(tmp_path / "global_step_100" / "actor"))
    assert saved(150) == [100, 150]
    assert saved(200) == [150, 200]
