"""A killed evaluation goes on where it stopped, to the same bytes; a results folder of others is refused."""

import argparse
import json
import os
import signal
import subprocess
import sys

import pytest

from benchmarks import journal
from benchmarks.backends.hf import HfBackend
from benchmarks.evaluate import main
from benchmarks.journal import Journal, work_keys
from benchmarks.output import Output
from onerec.errors import InputError
from onerec.keeper import STOPPED
from onerec.run import Manifest
from tests.arguments import as_flags

FLAGS = as_flags(
    free_sids=0,
    num_beams=16,
    max_thinking_tokens=4,
    token_budget=350,
    device="cpu",
    enable_thinking="true",
    thinking_temperature="0.9",
)

# The evaluation in a process of its own, which sends itself a signal inside its tenth write of results.
KILLED = """
import os, sys
from benchmarks import evaluate, journal
from onerec.cli import cli
write, calls = journal.Phase.write, []
def killing(self, entries):
    write(self, entries)
    calls.append(1)
    if len(calls) == 10:
        self._file.write(b'{"key": "cut o')
        self._file.flush()
        os.kill(os.getpid(), int(sys.argv[1]))
journal.Phase.write = killing
cli(lambda: evaluate.main(sys.argv[2:]))()
"""


def argv(checkpoint, data, output, *more):
    return [*as_flags(model_path=checkpoint, result_name="x", data_dir=data, output_dir=output), *FLAGS, *more]


def files_of(output):
    """What a run leaves, without what says when and how long."""
    folder = output / "results_x"
    metrics = json.loads((folder / "metrics.json").read_text())["tasks"]
    return metrics, {path.name: path.read_bytes() for path in folder.glob("predictions_*.jsonl")}


def signalled(sent, arguments):
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(int(sent)), *arguments],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_run_that_gets_sigterm_keeps_what_it_has_and_says_go_on(tiny_checkpoint, tiny_data, tmp_path):
    child = signalled(signal.SIGTERM, argv(tiny_checkpoint, tiny_data, tmp_path))
    assert child.returncode == STOPPED, child.stderr.decode()
    assert child.stderr.decode().splitlines()[-1].startswith("interrupted by SIGTERM: finished outputs stay")
    kept = [path.read_bytes() for path in (tmp_path / "results_x/progress").iterdir()]
    assert sum(text.count(b"\n") for text in kept) >= 10


def test_a_killed_run_goes_on_to_the_same_metrics_and_predictions(
    tiny_checkpoint, tiny_data, tmp_path, monkeypatch, capfd
):
    main(argv(tiny_checkpoint, tiny_data, tmp_path / "whole"))
    child = signalled(signal.SIGKILL, argv(tiny_checkpoint, tiny_data, tmp_path / "killed"))
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    folder = tmp_path / "killed" / "results_x"
    phases = {path.stem: path.read_bytes().splitlines() for path in (folder / "progress").iterdir()}
    assert not (folder / "metrics.json").exists() and b"cut o" in b"".join(lines[-1] for lines in phases.values())
    done = sum(len(lines) for lines in phases.values()) - 1

    asked = []

    def counting(real):
        def run(self, *args, **kwargs):
            for batch in real(self, *args, **kwargs):
                asked.extend(batch)
                yield batch

        return run

    for name in ("generate", "rank", "tail_logprobs"):
        monkeypatch.setattr(HfBackend, name, counting(getattr(HfBackend, name)))
    main(argv(tiny_checkpoint, tiny_data, tmp_path / "killed"))
    # 12 prompts of two tasks think; then come a ranking each, or two answers (of several tokens here) to be scored.
    assert len(asked) == 12 * 2 + 12 + 12 * 2 - done
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert not (folder / "progress").exists()


def test_a_results_folder_of_another_model_or_other_data_is_refused(tmp_path):
    folder = tmp_path / "results_x"

    def begin(**changed):
        about = {"model": "m1", "data": {"video": "d1"}, "data_version": "v1"} | changed
        run = Journal(folder, **about)
        run.phase("video").close()
        return run

    begin().finish()
    assert sorted(path.name for path in folder.iterdir()) == ["run.json"]
    begin(data={"ad": "d2"})  # another task of the same data joins
    begin(data={"ad": "d3"})  # a file that was mended after a run that failed on it
    (folder / "metrics.json").write_text("{}")
    for changed, match in (
        ({"model": "m2"}, "holds results of another model"),
        ({"data": {"video": "d9"}}, r"holds results of other data \(video differs\)"),
        ({"data_version": "v2"}, "holds results of data version 'v1', not 'v2'"),
    ):
        with pytest.raises(InputError, match=match):
            begin(**changed)
    (folder / "predictions_video.jsonl").write_text("old")
    begin(model="m2", overwrite=True)
    assert not (folder / "predictions_video.jsonl").exists()
    begin(model="m2")
    # Stopped, and given again as it was: what it has found itself stays.
    phase = Journal(folder, "m2", {"video": "d1"}, "v1").phase("video")
    phase.write([("a", 1)])
    phase.close()
    assert Journal(folder, "m2", {"video": "d1"}, "v1", overwrite=True).phase("video").known == {"a": 1}


def test_metrics_go_with_the_predictions_that_they_are_of(tmp_path):
    """A second evaluation that is killed leaves no metrics of the first beside its own predictions and scores."""
    folder = tmp_path / "results_x"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    args = argparse.Namespace(output_dir=tmp_path, data_dir=tmp_path, data_version="")
    Output(args, "x", Manifest("evaluate")).predictions("video", [{"uuid": "a"}])
    assert [path.name for path in folder.iterdir()] == ["predictions_video.jsonl"]


def test_another_checkpoint_under_the_same_name_is_refused(tiny_checkpoint, tiny_data, tmp_path):
    import shutil

    main(argv(tiny_checkpoint, tiny_data, tmp_path, "--tasks", "label_pred"))
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    main(argv(other, tiny_data, tmp_path, "--tasks", "label_pred"))  # a copy elsewhere is the same model
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1  # far from both ends of the file
    (other / "model.safetensors").write_bytes(weights)
    before = (tmp_path / "results_x" / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="another model"):
        main(argv(other, tiny_data, tmp_path, "--tasks", "label_pred"))
    assert (tmp_path / "results_x" / "metrics.json").read_bytes() == before


def test_a_key_changes_with_the_prompt_and_with_every_setting():
    keys = {
        work_keys(settings, [prompt])[0]
        for settings in ({"beams": 32}, {"beams": 33}, {"beams": 32, "normalize": "level"})
        for prompt in ([1, 2], [1, 2, 3], [2, 1])
    }
    assert len(keys) == 9


def test_lines_are_on_the_disk_when_written_and_a_cut_one_is_dropped(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(journal.os, "fsync", lambda fd: synced.append(fd))
    run = Journal(tmp_path, "m", {})
    phase = run.phase("video: thinking")
    phase.write([("a", [1, 2]), ("b", 0.1)])
    assert len(synced) == 1
    path = tmp_path / "progress" / "video_thinking.jsonl"
    phase.close()
    with open(path, "ab") as file:
        file.write(b'{"key": "c", "val')
    again = run.phase("video: thinking")
    assert again.known == {"a": [1, 2], "b": 0.1}
    again.write([("c", 3)])
    again.close()
    assert run.phase("video: thinking").known == {"a": [1, 2], "b": 0.1, "c": 3}
