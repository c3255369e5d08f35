"""Runs of train.py one after another in the same processes, so that a test pays for their start once.

    torchrun --nproc_per_node 2 sharded_runs.py runs.json

``runs.json``: a list of ``{"argv": […], "kill_at": step or null}``; a killed run ends before that step everywhere.
``"signal_at": step``: the last process gets SIGTERM within that step. ``"status"``: what the run is to return.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch.distributed as dist  # noqa: E402
from accelerate.state import AcceleratorState, GradientState  # noqa: E402

from onerec.distributed import process_group  # noqa: E402
from pretrain import train  # noqa: E402
from pretrain.sharding import Zero  # noqa: E402
from pretrain.trainer import PackedTrainer  # noqa: E402


class Killed(Exception):
    pass


def main(path: str) -> None:
    original = PackedTrainer.training_step
    with process_group("gloo"):  # the runs inside share it
        for run in json.loads(Path(path).read_text()):

            def step(self, *args, run=run, **kwargs):
                if self.state.global_step == run["kill_at"]:
                    raise Killed
                last = dist.get_rank() == dist.get_world_size() - 1
                if last and self.state.global_step + 1 == run.get("signal_at"):
                    os.kill(os.getpid(), signal.SIGTERM)
                return original(self, *args, **kwargs)

            PackedTrainer.training_step = step
            try:
                status = train.main(run["argv"])
                assert status == run.get("status", 0), (run, status)
            except Killed:
                dist.barrier()
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            Zero.release(None)


if __name__ == "__main__":
    main(sys.argv[1])
