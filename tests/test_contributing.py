"""CONTRIBUTING.md is right: its code blocks, applied word for word to a copy of the repository, add what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.sid import SidSpec
from tests.benchmarks.conftest import tiny_data  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n# (\S+), (new|(?:behind|before|in the place of): ([^\n]*))\n(.*?)```", re.DOTALL)


@pytest.fixture
def copy(tmp_path) -> Path:
    """The folders that a baseline and a reward need."""
    for name in ("onerec", "benchmarks", "verl_rl", "docs"):
        shutil.copytree(ROOT / name, tmp_path / "copy" / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    return tmp_path / "copy"


def apply(section: str, root: Path) -> set[str]:
    """Do what a section of CONTRIBUTING.md shows; the files that it touched."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text.split(f"\n## {section}\n")[1].split("\n## ")[0])
    for name, where, line, code in blocks:
        path = root / name
        if where == "new":
            path.write_text(code, encoding="utf-8")
            continue
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [number for number, old in enumerate(lines) if old.strip() == line]
        assert len(found) == 1, f"{name}: {line}"
        begin = found[0] + where.startswith("behind")
        lines[begin : begin + where.startswith("in the place")] = [code]
        path.write_text("".join(lines), encoding="utf-8")
    return {name for name, *_ in blocks}


def python(root: Path, *command: str) -> str:
    env = os.environ | {"PYTHONPATH": str(root), "ONEREC_CODE": str(root)}
    ran = subprocess.run([sys.executable, *command], cwd=root, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_baseline_is_two_files(copy, tiny_data, tmp_path):  # noqa: F811
    assert len(apply("A baseline", copy)) == 2
    flags = [
        "--data_dir",
        str(tiny_data),
        "--output_dir",
        str(tmp_path / "out"),
        "--bootstrap",
        "0",
        "--tasks",
        "video",
    ]
    printed = python(copy, "benchmarks/baselines.py", "--baselines", "latest", *flags)
    assert re.search(r"^latest +video +recall@10 0\.\d{4}", printed, re.MULTILINE)
    lines = (tmp_path / "out/results_latest/predictions_video.jsonl").read_text().splitlines()
    assert json.loads(lines[2])["items"][:3] == [4, 3, 2]  # its history is 2, 3, 4


def test_a_reward_is_one_file(copy):
    assert apply("A reward", copy) == {"verl_rl/rewards.py"}
    code = """
import json
from onerec.sid import SidSpec
from verl_rl import rewards
spec = SidSpec((4, 3))
texts = [spec.format(sid) for sid in ((1, 0), (1, 2), (2, 2))]
rows = rewards.score_group(texts, spec.format((1, 2)), spec, rewards.parse_weights("full_hit=1,first_layer=0.1"), False)
print(json.dumps([[row["first_layer"], round(row["score"], 6)] for row in rows]))
"""
    assert json.loads(python(copy, "-c", code)) == [[1.0, 0.1], [1.0, 1.1], [0.0, 0.0]]


def test_a_sid_format_is_one_file(copy):
    assert apply("A SID format", copy) == {"onerec/sid.py"}
    SidSpec((2, 1)).save(copy)  # in this repository's own format
    code = """
import json
from onerec.errors import InputError
from onerec.sid import ITEM_TOKEN, SidSpec
try:
    SidSpec.load(".")
except InputError as error:
    refused = error.what
spec = SidSpec((2, 1), first_id=9)
spec.save(".")
assert SidSpec.load(".") == spec
text = spec.text((1, 0))
print(json.dumps([text, spec.tokens[:3], spec.parse(text), spec.foreign("<b_1>"), ITEM_TOKEN, refused]))
"""
    text, tokens, parsed, foreign, pattern, refused = json.loads(python(copy, "-c", code))
    assert text == "<|sid_begin|><a_1><b_0><|sid_end|>" and parsed == [[1, 0]] and foreign == "<b_1>"
    assert tokens == ["<a_0>", "<a_1>", "<b_0>"] and re.findall(pattern, text) == ["<a_1>", "<b_0>"]
    assert refused == "names other tokens or ids than its codebook sizes imply"


def test_every_section_names_three_files_at_most():
    sections = re.findall(
        r"^## A .*?$\n\nFiles?: (.*?)Test:", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(sections) == 8
    assert all(1 <= len(re.findall(r"`[^`]*/[^`]*`", files)) <= 3 for files in sections)
