"""Two clones that share an environment: what is run in one of them is its own code, by shell script or by Python."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from onerec.parquet import write_table
from onerec.records import record_uuid, text_record, write_records

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("onerec", "data", "tokenizer", "pretrain", "verl_distillation", "verl_rl", "benchmarks")
# These start other scripts, or none of the project's code.
_STARTERS = """
entry.sh mix.sh argument.sh owned.sh install.sh ray_slurm.sh ray_start.sh slurm.sh run_posttrain_sft_local.sh
run_pretrain_stg1_local.sh run_pretrain_stg2_local.sh pretrain/scripts/common.sh
"""
STARTERS = set(_STARTERS.split())


def files(pattern: str) -> list[Path]:
    """The repository's own files of a pattern, tests left out."""
    return [path for folder in (*PACKAGES, "scripts") for path in sorted((ROOT / folder).rglob(pattern))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A second clone, beside the one that the environment was installed from, of another version."""
    folder = tmp_path_factory.mktemp("second") / "clone"
    left_out = shutil.ignore_patterns(
        ".*", "runs", "tests", "raw_data", "output", "models", "results", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)
    init = folder / "onerec" / "__init__.py"
    init.write_text(re.sub(r'__version__ = ".*"', '__version__ = "second"', init.read_text()))
    for stage in ("data/sampling.py", "tokenizer/embeddings.py"):
        with (folder / stage).open("a") as file:
            file.write('\nprint("stage of", __file__)\n')
    return folder


def run(command: list[str], cwd: Path, **variables: str) -> str:
    """Standard output of a command that nothing has told which clone to use."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ONEREC_CODE")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=inherited | {"PYTHON": sys.executable} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_shell_script_runs_its_own_clone_and_says_so(clone, tmp_path):
    write_records(
        tmp_path / "text.parquet",
        [text_record(record_uuid(i), "text", {}, [f"文{i}。" * 9]) for i in range(3)],
    )
    output = tmp_path / "prompts.parquet"
    said = run(["bash", "prepare_distillation.sh"], clone / "data", INPUT=str(tmp_path), OUTPUT_FILE=str(output))
    assert said.count("code: ") == 1 and said.startswith(f"code: {clone}\n")
    assert f"stage of {clone}/data/sampling.py" in said
    assert json.loads(output.with_name("prompts.manifest.json").read_text())["version"] == "second"


def test_a_python_script_runs_its_own_clone_and_says_so_where_another_was_installed(clone, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    table = pa.table({"pid": np.arange(64), "embedding": list(vectors)})
    write_table(tmp_path / "embedding.parquet", table)
    flags = ["--n_layers", "2", "--codebook_size", "4", "--dim", "4"]
    said = run(
        [
            sys.executable,
            "train_res_kmeans.py",
            "--data_path",
            str(tmp_path / "embedding.parquet"),
            "--model_path",
            str(tmp_path / "model"),
            *flags,
        ],
        clone / "tokenizer",
    )
    assert f"stage of {clone}/tokenizer/embeddings.py" in said
    from onerec.run import _installed_from

    if installed := _installed_from():
        assert said.startswith(f"code: {clone} (the environment was installed from {installed})\n") or (
            f"\ncode: {clone} (the environment was installed from {installed})\n" in said
        )
    assert json.loads(next((tmp_path / "model").glob("*manifest.json")).read_text())["version"] == "second"


def test_an_entry_point_puts_its_root_first_before_it_imports_the_projects_code():
    late = []
    for path in files("*.py"):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' not in text:
            continue
        body = ast.parse(text).body
        depth = len(path.relative_to(ROOT).parts) - 1
        right = f"sys.path.insert(0, str(Path(__file__).resolve().parents[{depth}]))"
        # Yardsticks import a module beside them, which does so.
        measure = [node for node in body if isinstance(node, ast.ImportFrom) and node.module == "measure"]
        first = [node.lineno for node in body if ast.unparse(node) == right or node in measure]
        imports = [
            node.lineno
            for node in body
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        ]
        if imports and not (first and first[0] < min(imports)):
            late.append(str(path.relative_to(ROOT)))
    assert not late


def test_a_shell_script_puts_its_root_first():
    without = {
        str(path.relative_to(ROOT))
        for path in files("*.sh")
        if not {path.name, str(path.relative_to(ROOT))} & STARTERS
        and not re.search(r"^source .*(/entry|common)\.sh", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert not without
