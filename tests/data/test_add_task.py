"""CONTRIBUTING.md's steps for a new SFT task, done in a copy: a row, a builder and its prompts, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from onerec.records import parse_messages, read_file_list

ROOT = Path(__file__).resolve().parents[2]
ROW = """    Task("sft_next_video", "RecIF_NextVideo", _rank(10, "next_video")),
"""
BUILDER = '''

@builder(required=VIDEO_COLUMNS)
def sft_next_video(job: Job) -> Iterator[Sample]:
    """Watch history to the next video, asked for without a system turn."""
    watched = Watched(job)
    for row in watched.usable(job.rows):
        question = job.draws(row).pick(job.prompts["question"][job.task.topic]).fill()
        asked = [("user", watched.history.text[row] + question)]
        yield job.recommend(row, asked, watched.target, watched.history)
'''


def test_a_task_is_a_row_a_builder_and_its_prompts(release, tmp_path):
    clone = tmp_path / "clone"
    for folder in ("data", "onerec"):
        shutil.copytree(
            ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__", "output", "raw_data")
        )
    table, builders = clone / "onerec/tasks.py", clone / "data/onerec_data/recommend.py"
    place = '    Task("sft_interactive_rec"'
    table.write_text(table.read_text().replace(place, ROW + place))
    builders.write_text(builders.read_text() + BUILDER)
    file = clone / "data/onerec_data/prompts/zh.json"
    wording = json.loads(file.read_text())
    wording["question"]["next_video"] = ["下一个？"]
    file.write_text(json.dumps(wording, ensure_ascii=False))

    def run(script: str, *arguments: str) -> str:
        command = [sys.executable, str(clone / "data" / script), *arguments]
        environment = os.environ | {"PYTHONPATH": str(clone)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("onerec_data/run.py", *release.argv())
    row = pq.read_table(release.output / "sft_next_video.parquet").to_pylist()[0]
    assert row["source"] == "RecIF_NextVideo" and parse_messages(row["messages"])[0]["content"].endswith("下一个？")
    assert (release.output / "benchmark_data/next_video/next_video_test.parquet").exists()
    sequences = pq.read_table(release.output / "benchmark_data/train_sequences.parquet")
    assert "next_video" in sequences["task"].to_pylist()
    run("prepare_rl.py", "--input_dir", str(release.output), "--output_dir", str(tmp_path / "rl"), "--test_size", "1")
    test = pq.read_table(tmp_path / "rl/test.parquet")["data_source"].to_pylist()
    assert "onerec/next_video" in test
    config = {"sources": [{"tasks": "sft", "path": "output"}]}
    (tmp_path / "mix.json").write_text(json.dumps(config))
    mixed = ("--base_dir", str(tmp_path), "--output_dir", str(tmp_path / "mixed"))
    assert "rows  next_video\n" in run("prepare_mix.py", "--config", str(tmp_path / "mix.json"), *mixed)
    assert read_file_list(tmp_path / "mixed")
