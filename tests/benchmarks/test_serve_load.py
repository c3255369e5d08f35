"""The server under load, by its yardstick: a thousand requests, a fifth of them bad, and an orderly end."""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.serving import write_run

ROOT = Path(__file__).resolve().parents[2]


def test_a_thousand_requests_of_which_a_fifth_are_bad(tmp_path, tiny_checkpoint):
    model = write_run(tmp_path / "run", tiny_checkpoint)
    command = [sys.executable, str(ROOT / "scripts/perf/serve.py"), "--model_path", str(model), "--clients"]
    command += ["--data_dir", str(tmp_path / "run/output/benchmark_data"), "--requests", "1000", "--beams", "8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    kinds = "cut while asking: 40, cut while waiting: 40, malformed: 40, too large: 40, unknown item: 40"
    assert f"answered: 800, {kinds}" in done.stdout
    assert "64 of 64 questions at work were answered, exit status 0" in done.stdout
