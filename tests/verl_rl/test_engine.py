"""GRPO's engine on verl's FSDP2: trees give what padded rows give, before and after an update, in both precisions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

RUN = Path(__file__).with_name("engine_run.py")
ROOT = RUN.parents[2]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def found(device, tmp_path_factory) -> dict:
    """What `engine_run.py` found."""
    if find_spec("verl") is None:
        pytest.skip("needs verl")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(RUN), str(tmp_path_factory.mktemp("engine")), "--device", device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def apart(one: dict, other: dict, name: str) -> np.ndarray:
    return np.abs(np.array(one[name]) - np.array(other[name]))


def test_trees_train_as_verls_own_rows_do(found, device):
    reference = found["rows fp32"]
    # float32 on a GPU may multiply in TF32, which keeps as many digits as float16.
    tolerance = 1e-4 if device == "cpu" else 2e-2
    for name in ("before", "after", "entropy"):
        assert apart(found["trees fp32"], reference, name).max() < tolerance
        # Rounding to bfloat16 costs trees what it costs rows.
        rows, trees = (apart(found[f"{side} bf16"], reference, name) for side in ("rows", "trees"))
        assert trees.mean() < 2 * rows.mean() + 1e-3 and trees.max() < 0.15
    assert apart(reference, reference | {"after": reference["before"]}, "after").max() > 0.5, "nothing learnt"
    for side in found.values():
        assert side["gradient"] == pytest.approx(reference["gradient"], rel=0.02)


def test_micro_batches_are_filled_by_what_trees_compute(found):
    # 24 rows of 20 to 47 prompt tokens: verl's rows need six passes of at most 150 tokens (without padding), trees two.
    assert len(found["rows fp32"]["tokens"]) == 6
    assert len(found["trees fp32"]["tokens"]) == 2 and max(found["trees fp32"]["tokens"]) <= 150
