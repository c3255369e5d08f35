"""The documents are short, the links, files, scripts and flags that they name exist, and their tables are generated."""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "results.py")
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)
STAGES = ("data", "tokenizer", "pretrain", "verl_distillation", "verl_rl", "benchmarks")
TOPS = (*STAGES, "onerec", "scripts", "docs", "experiments", "tests")
# What runs write (.gitignore) is not there; a release's or a user's own files are not either.
WRITTEN = re.compile(
    r"(^|/)(output|raw_data|runs|results|auto_eval_logs|checkpoints|tb_logs|hf|models?|sids)(/|$)|[<>…*$]"
)
SCRIPT = re.compile(r"^[\w./-]+\.(?:py|sh)$")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(p for top in TOPS for p in (ROOT / top).rglob("*.md")))
    if not re.search(r"/(output|raw_data|results|models)/", path.relative_to(ROOT).as_posix())
)
# Tables of OpenOneRec's words, held by tests/test_openonerec.py; measurements in the words of their day.
HISTORY = re.compile(r"docs/from_openonerec\.md|RESULTS\.md|experiments/.+/README\.md")
TODAY = [name for name in DOCUMENTS if not HISTORY.fullmatch(name)]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[str]:
    """The code blocks of a document."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def paragraphs(text: str) -> Iterator[str]:
    """Prose by paragraph; an item of a list is one; tables, headings and code are none."""
    for block in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", without_code(text)):
        if block.strip() and not block.lstrip().startswith(("|", "#", "<!--")):
            yield block


# --- length


def test_the_readme_is_a_page():
    assert len(re.sub(r"<!--.*?-->", "", read("README.md")).split()) <= 700


@pytest.mark.parametrize("name", [f"{stage}/README.md" for stage in (*STAGES, "scripts")])
def test_a_stages_page_is_short(name):
    text = read(name)
    assert text.count("\n") <= 120
    long = [words for words in map(str.split, paragraphs(text)) if len(words) > 80]
    assert not long, " ".join(long[0][:12])


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if re.fullmatch(r"experiments/.+/README\.md", name)])
def test_an_experiments_page_is_short(name):
    assert read(name).count("\n") <= 60


# --- links and files


def headings(text: str) -> set[str]:
    """The anchors of a document, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(name))):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in headings(path.read_text(encoding="utf-8")), target


def braces(text: str) -> list[str]:
    """``a.{b,c}`` to ``a.b`` and ``a.c``."""
    match = re.search(r"\{([^{}]*)\}", text)
    if not match:
        return [text]
    return [
        whole for part in match[1].split(",") for whole in braces(text[: match.start()] + part + text[match.end() :])
    ]


def above(folder: Path) -> list[Path]:
    """The folder and those above it, up to the repository."""
    return [base for base in (folder, *folder.parents) if base.is_relative_to(ROOT)]


def found(path: str, folder: Path) -> Path | None:
    """A file that a document in ``folder`` names: from there, from a folder above, or a script below."""
    for base in above(folder):
        if (base / path).exists():
            return base / path
    if SCRIPT.match(path) and folder != ROOT and "/" not in path:
        return next(folder.rglob(path), None)
    return None


def missing_files(text: str, folder: Path) -> list[str]:
    """Scripts and paths of the repository that a document names in code and that are not there."""
    missing = []
    for span in re.findall(r"`([^`\n]+)`", without_code(text)):
        for path in braces(span):
            named = SCRIPT.match(path) or (re.match(r"[\w./-]+$", path) and path.split("/")[0] in TOPS and "/" in path)
            if named and not WRITTEN.search(path) and not found(path.rstrip("/"), folder):
                missing.append(path)
    return missing


@pytest.mark.parametrize("name", TODAY)
def test_files_that_are_named_are_there(name):
    assert missing_files(read(name), (ROOT / name).parent) == []


# --- commands


def commands(text: str, folder: Path) -> Iterator[tuple[Path, str, list[str]]]:
    """(working folder, script, flags) of every ``bash x.sh`` and ``python x.py``; ``cd`` is followed in a block."""
    spans = re.findall(r"`([^`\n]+)`", without_code(text))
    for block in [*(part.replace("\\\n", " ") for part in blocks(text)), *spans]:
        where = folder
        for line in block.splitlines():
            for command in re.split(r"&&|;|\|", line.partition(" #")[0]):
                words = command.split()
                if words[:1] == ["cd"] and len(words) > 1:
                    where = (where / words[1]).resolve() if (where / words[1]).is_dir() else ROOT / words[1]
                scripts = [i for i, word in enumerate(words) if SCRIPT.match(word) and not WRITTEN.search(word)]
                if scripts and {"bash", "python", "sbatch", "torchrun"} & set(words[: scripts[0]]):
                    last = scripts[-1] if "sbatch" in words else scripts[0]
                    flags = [word.partition("=")[0].strip("`…") for word in words[last + 1 :] if word.startswith("--")]
                    yield where, words[last], flags


def parts(path: Path) -> Iterator[Path]:
    """The files of this repository that a script names: modules that it imports, scripts that it runs or sources."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                yield from (ROOT / f"{name.replace('.', '/')}.py" for name in names)
        for name in re.findall(r'"([\w./-]+\.py)"', text):
            yield from (base / name for base in above(path.parent))
        return
    for word in re.findall(r"[\w./-]+\.(?:py|sh)\b", re.sub(r"\$\{?\w+\}?/", "", text)):
        yield from (base / word for base in above(path.parent))
        yield from (ROOT / stage / word for stage in STAGES)


@functools.cache
def known_flags(path: Path) -> frozenset[str]:
    """Flags in the text of a script and of what it names."""
    seen, todo = set(), [path]
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        todo += parts(file)
    return frozenset(
        flag for file in seen for flag in re.findall(r"--[a-z]\w*(?:-\w+)*", file.read_text(encoding="utf-8"))
    )


def helps(path: Path, flag: str) -> bool:
    """Whether ``--help`` of a Python script lists a flag: for those whose names are put together."""
    ran = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, cwd=path.parent)
    return re.search(rf"{flag}\b", ran.stdout) is not None


def wrong_commands(text: str, folder: Path) -> list[str]:
    """Commands of a document whose script is not there, and flags that it does not know."""
    wrong = []
    for where, script, flags in commands(text, folder):
        path = next((base / script for base in above(where) if (base / script).is_file()), None)
        if path is None:
            wrong.append(script)
            continue
        unknown = [flag for flag in flags if flag not in known_flags(path)]
        wrong += [f"{script} {flag}" for flag in unknown if path.suffix != ".py" or not helps(path, flag)]
    return wrong


@pytest.mark.parametrize("name", TODAY)
def test_commands_name_scripts_and_flags_that_are_there(name):
    assert wrong_commands(read(name), (ROOT / name).parent) == []


def unknown_variables(text: str, stage: str) -> list[str]:
    """Variables that a stage's page names and that no script knows, neither by name nor as the flag of that name."""
    tops = {stage, "scripts", "onerec"}
    files = [path for top in tops for path in (ROOT / top).rglob("*") if path.suffix in {".py", ".sh", ".env", ".json"}]
    files.append(ROOT / "docs/from_openonerec.md")
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    spans = re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9])(?:=[^`]*)?`", without_code(text))
    return [name for name in spans if not re.search(rf"\b{name}\b|--{name.lower()}\b", code)]


@pytest.mark.parametrize("stage", [*STAGES, "scripts"])
def test_variables_are_known(stage):
    assert unknown_variables(read(f"{stage}/README.md"), stage) == []


def test_settings_that_are_shown_are_known():
    shown = [one for name in TODAY for one in re.findall(r"--set (\w+\.\w+=[^\s`<]+)", read(name))]
    command = [sys.executable, str(ROOT / "scripts/settings.py"), "list", "laptop"]
    ran = subprocess.run(
        command, env=os.environ | {"ONEREC_SETTINGS": "\n".join(shown)}, capture_output=True, text=True
    )
    assert shown and ran.returncode == 0, ran.stderr


BREACHES = """`data/gone.py`, `gone.sh`, `tokenizer/{kmeans,gone}.py`, `TRAIN_BATCH_SIZE`, `TRAIN_BATCH_GONE=1`

```bash
cd data && bash prepare_rl.sh --gone 1     # a comment with --another
python describe.py --tokenizer x --gone
cd .. && X=1 bash scripts/gone.sh
```
"""


def test_breaches_are_seen():
    assert missing_files(BREACHES, ROOT) == ["data/gone.py", "gone.sh", "tokenizer/gone.py"]
    assert wrong_commands(BREACHES, ROOT) == ["prepare_rl.sh --gone", "describe.py --gone", "scripts/gone.sh"]
    assert unknown_variables(BREACHES, "verl_rl") == ["TRAIN_BATCH_GONE"]
    assert [len(words.split()) for words in paragraphs("# a b\n\nc d\ne\n- f\n- g h\n\n| i |\n```\nj\n```\n")] == [
        3,
        2,
        3,
    ]


def test_the_readme_shows_its_two_commands():
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= {
        script for _, script, _ in commands(read("README.md"), ROOT)
    }


# --- measurements


def test_the_tables_are_what_the_script_writes():
    written = results.render()
    assert {path for path in written if path.read_text(encoding="utf-8") != written[path]} == set()
    assert results.render() == written


def test_the_plan_of_grpo_is_what_the_script_prints():
    ran = subprocess.run([sys.executable, str(ROOT / "verl_rl/plan.py")], capture_output=True, text=True, check=True)
    assert ran.stdout[ran.stdout.index("| Qwen3") :] in read("verl_rl/recipe/onerec/PLAN.md")


def test_the_readmes_table_has_five_rows():
    table = read("README.md").partition("<!-- results: headline -->\n")[2].partition("<!-- end of results -->")[0]
    assert table.count("\n") == 2 + 5


def test_the_index_names_every_experiment_newest_first():
    index = re.findall(r"^- ([\d-]+) \[.*?\]\(([^/]+)/README\.md\)", read("experiments/README.md"), flags=re.MULTILINE)
    assert sorted(folder for _, folder in index) == sorted(
        p.name for p in (ROOT / "experiments").iterdir() if p.is_dir()
    )
    assert [date for date, _ in index] == sorted((date for date, _ in index), reverse=True)


@pytest.mark.parametrize("name", [f"{stage}/README.md" for stage in (*STAGES, "scripts")])
def test_a_stages_page_has_no_table_of_measurements(name):
    """A row with three fractions is one."""
    rows = [
        line
        for line in read(name).splitlines()
        if line.startswith("|") and len(re.findall(r"\b\d+\.\d{2,}\b", line)) > 2
    ]
    assert not rows
