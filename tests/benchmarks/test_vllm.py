"""Two vLLM engines as Ray actors give what hf gives, and a killed run goes on. Runs where vLLM is installed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.arguments import as_flags

# An evaluation in a process of its own, prompts handed out two at a time; with "kill" it dies after its third write.
CHILD = """
import os, signal, sys
from benchmarks import evaluate, journal
from benchmarks.backends import vllm
vllm._BATCH = 2
write, calls = journal.Phase.write, []
def counting(self, entries):
    entries = list(entries)
    write(self, entries)
    calls.append(len(entries))
    if len(calls) == 3 and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
journal.Phase.write = counting
evaluate.main(sys.argv[2:])
print("written", sum(calls))
"""


def lines_of(folder, task):
    return [json.loads(line) for line in (folder / f"predictions_{task}.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("ONEREC_LONG_TESTS"), reason="takes minutes; ONEREC_LONG_TESTS=1 runs it")
def test_two_engines_under_ray_give_what_hf_gives_and_a_killed_run_goes_on(tiny_checkpoint, tiny_data, tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    pytest.importorskip("ray", reason="Ray is not installed")
    import torch

    if torch.cuda.is_available():
        pytest.skip("needs two GPUs or a CPU build of vLLM")
    flags = as_flags(
        model_path=tiny_checkpoint, data_dir=tiny_data, output_dir=tmp_path, free_sids=0, num_beams=16, tasks="video"
    )

    def run(mode, *more):
        return subprocess.run(
            [sys.executable, "-c", CHILD, mode, *flags, *more],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"},
        )

    engines = ["--result_name", "vllm", "--backend", "vllm", "--data_parallel", "2"]
    killed = run("kill", *engines)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    progress = tmp_path / "results_vllm" / "progress" / "video.jsonl"
    assert len(progress.read_text().splitlines()) == 6 and not (tmp_path / "results_vllm" / "metrics.json").exists()
    again = run("on", *engines)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "written 6" in again.stdout  # of 12 prompts
    assert run("on", "--result_name", "hf").returncode == 0
    folders = [tmp_path / f"results_{name}" for name in ("vllm", "hf")]
    for a, b in zip(*(lines_of(folder, "video") for folder in folders), strict=True):
        assert a["sids"] == b["sids"] and a["items"] == b["items"] and a["uuid"] == b["uuid"]
        np.testing.assert_allclose(a["logprobs"], b["logprobs"], atol=1e-3)
    metrics = [json.loads((folder / "metrics.json").read_text())["tasks"]["video"] for folder in folders]
    assert metrics[0] == metrics[1] and metrics[0]["samples"] == 12
