"""The house's import rules: a stage imports `onerec` and itself, never another stage."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("data", "tokenizer", "pretrain", "verl_distillation", "verl_rl", "benchmarks")


def imported(path: Path) -> set[str]:
    """Top-level names that a Python file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_other_stage(stage):
    """But for yardsticks, which stand outside and take the parts that they time."""
    others = set(STAGES) - {stage}
    inner = [path for path in files(stage) if "perf" not in path.parts]
    found = {str(path.relative_to(ROOT)): bad for path in inner if (bad := imported(path) & others)}
    assert not found


def test_the_contracts_import_no_stage():
    found = {
        str(path.relative_to(ROOT)): bad for path in files("onerec") if (bad := imported(path) & set(STAGES))
    }
    assert not found


def test_contracts_are_each_used_by_two_stages():
    """Rule 2: `onerec` holds only what two stages use (directly, or through another contract)."""
    users: dict[str, set[str]] = {path.stem: set() for path in files("onerec") if path.stem != "__init__"}
    texts = {stage: "\n".join(path.read_text(encoding="utf-8") for path in files(stage)) for stage in STAGES}
    inner = "\n".join(path.read_text(encoding="utf-8") for path in files("onerec"))
    for name, seen in users.items():
        seen |= {stage for stage, text in texts.items() if f"onerec.{name}" in text}
        seen |= {"onerec"} if f"onerec.{name}" in inner else set()
    # Item decoding (and its model's side) waits for a second stage: rollouts search items inside vLLM. verl loads its CPU
    # platform by name.
    lonely = {name for name, seen in users.items() if len(seen) < 2} - {"decode", "beam_model", "verl_cpu"}
    assert not lonely


def test_no_file_is_larger_than_a_room():
    """Rule 6: a file that passes about 400 lines wants to be two."""
    large = {
        str(path.relative_to(ROOT)): n
        for folder in (*STAGES, "onerec", "scripts")
        for path in files(folder)
        if (n := path.read_text(encoding="utf-8").count("\n")) > 450
    }
    assert not large


def test_the_sid_grammar_is_written_once():
    """Rule 4: nobody but `onerec.sid` spells an itemic token or its marks in code (but for yardsticks)."""
    spelled = {
        str(path.relative_to(ROOT))
        for folder in STAGES
        for path in files(folder)
        if "perf" not in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.JoinedStr | ast.Call | ast.Assign)
        for child in ast.walk(node)
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and "<s_a_" in child.value
    }
    assert not spelled
