"""What is written beside the training: the state at the moment of the copy, one checkpoint at a time, no error lost."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from pretrain.saving import Saver, flush


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_stays_as_it_was_while_the_training_goes_on(device):
    saver = Saver()
    weight = torch.nn.Parameter(torch.arange(6.0, device=device).reshape(2, 3))
    state = {"model": {"w": weight}, "groups": [{"lr": 0.1, "params": [0]}], "view": weight.detach()[1]}
    for value in (0.0, 7.0):  # the second copy takes the memory of the first
        with torch.no_grad():
            weight[0, 0] = value
        kept = saver.copy(state)
        with torch.no_grad():
            weight.add_(1)
        expected = torch.arange(6.0).reshape(2, 3) + (1 if value else 0)
        expected[0, 0] = value
        assert torch.equal(kept["model"]["w"], expected) and torch.equal(kept["view"], expected[1])
        assert kept["view"].device.type == "cpu" and kept["groups"] == state["groups"]


def test_one_write_at_a_time_and_what_it_raises_comes_up_once():
    saver, begun, may_end, seen = Saver(), threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        may_end.wait(600)
        seen.append("first")
        raise OSError(28, "No space left on device")

    saver.start(first)
    assert begun.wait(600)
    saver.check()  # still at it: nothing to say
    may_end.set()
    with pytest.raises(OSError, match="No space"):
        saver.start(lambda: seen.append("never"))
    saver.check()
    saver.start(lambda: seen.append("second"))
    saver.wait()
    assert seen == ["first", "second"]


def test_a_folder_is_flushed_with_all_that_lies_in_it(tmp_path, monkeypatch):
    """A full disk of another machine is told of here at the latest, and a file that another process moves is none."""
    (tmp_path / "fsdp").mkdir()
    for name in ("run.json", "fsdp/a.distcp"):
        (tmp_path / name).write_text("1")
    (tmp_path / "moved").symlink_to(tmp_path / "nowhere")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}"))))
    flush(tmp_path)
    assert sorted(synced) == ["a.distcp", "run.json"]

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        flush(tmp_path)
