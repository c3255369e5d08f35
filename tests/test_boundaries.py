"""The rules of the house. Each rule is a function of a folder, and is shown to see a planted breach."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from onerec.tasks import BENCH_TASKS, RANK_TASKS, TASKS, TESTED

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("data", "tokenizer", "pretrain", "verl_distillation", "verl_rl", "benchmarks")
CODE = (*STAGES, "onerec", "scripts", "experiments")


def files(root: Path, *folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it; of ``from a import b`` both ``a`` and ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def a_stage_imports_another(root: Path) -> set[str]:
    """Rule 1."""
    return {
        module(root, path)
        for stage in (*STAGES, "onerec")
        for path in files(root, stage)
        if tops(imported(path)) & (set(STAGES) - {stage})
    }


def the_runner_of_vllm_is_driven(root: Path) -> set[str]:
    """Rule 3: nothing imports what runs a model inside vLLM: its workers, its forward context, its attention."""
    inner = ("vllm.forward_context", "vllm.v1.worker", "vllm.v1.attention", "vllm.attention")
    return {
        module(root, path)
        for path in files(root, *CODE)
        if any(name == word or name.startswith(f"{word}.") for name in imported(path) for word in inner)
    }


def a_contract_imports_torch(root: Path) -> set[str]:
    """Rule 2: the flat files of `onerec` import no torch, and nothing of it that does."""
    graph = {module(root, path): imported(path) for path in files(root, "onerec")}
    heavy = {name for name, found in graph.items() if "torch" in tops(found)}
    while more := {name for name, found in graph.items() if found & heavy} - heavy:
        heavy |= more
    return {module(root, path) for path in (root / "onerec").glob("*.py")} & heavy


def a_contract_is_one_stages(root: Path) -> set[str]:
    """Rule 2: `onerec` holds only what two stages use; using itself does not count."""
    users: dict[str, set[str]] = {}
    for stage in STAGES:
        for path in files(root, stage):
            for name in imported(path):
                users.setdefault(name, set()).add(stage)
    flat = {module(root, path) for path in (root / "onerec").glob("*.py")} - {"onerec"}
    return {name for name in flat if len(users.get(name, ())) < 2}


def a_file_is_larger_than_a_room(root: Path) -> set[str]:
    """Rule 6."""
    return {module(root, path) for path in files(root, *CODE) if path.read_text(encoding="utf-8").count("\n") > 450}


def imports_go_round(root: Path) -> set[str]:
    """Rule 6: modules that import themselves by way of others; imports inside functions count."""
    paths = {module(root, path): path for path in files(root, *CODE)}
    graph = {name: (imported(path) & paths.keys()) - {name} for name, path in paths.items()}
    while leaves := {name for name, found in graph.items() if not found & graph.keys()}:
        graph = {name: found for name, found in graph.items() if name not in leaves}
    # What is left leads to a circle; what nothing of it imports only leads there.
    while onlookers := graph.keys() - set().union(*graph.values()):
        graph = {name: found for name, found in graph.items() if name not in onlookers}
    return set(graph)


def _documents(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            yield node.body[0].value


def _spelling(root: Path, words: Sequence[str], *folders: str) -> set[str]:
    """Modules with one of ``words`` in a string or bytes, or in a piece of one; docstrings do not count."""
    found = set()
    for path in files(root, *folders):
        tree = parsed(path)
        documents = set(_documents(tree))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) and node not in documents:
                text = node.value if isinstance(node.value, str) else node.value.decode("utf-8", "replace")
                if any(word in text for word in words):
                    found.add(module(root, path))
    return found


def the_sid_grammar_is_spelled(root: Path) -> set[str]:
    """Rule 4: nobody but `onerec.sid` writes an itemic token or its marks, or pieces of them, in code."""
    return _spelling(root, ("<s_", "<|sid_"), *STAGES, "onerec") - {"onerec.sid"}


def the_marks_of_a_family_are_spelled(root: Path) -> set[str]:
    """Rule 4: nobody but `onerec.render` writes the marks of turns, texts and thinking, or patterns of them."""
    found = _spelling(root, ("im_start", "im_end", "endoftext", "think>"), *CODE)
    return {name for name in found if not name.startswith("onerec.render.")}


def _lists_ranking_tasks(words: Iterable[object]) -> bool:
    """Whether ``words`` are names of tasks, or of their files, two of them of ranking tasks."""
    words = [str(word).removesuffix(".parquet") for word in words]
    ranking = {*RANK_TASKS, *(TESTED[name].name for name in RANK_TASKS), *(TESTED[name].topic for name in RANK_TASKS)}
    names = {*ranking, *BENCH_TASKS, *TASKS, *(task.topic for task in TASKS.values())}
    return len(ranking.intersection(words)) > 1 and names.issuperset(words)


def _literal_lists(tree: ast.Module) -> Iterator[list[object]]:
    for node in ast.walk(tree):
        items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else getattr(node, "keys", None)
        for side in (items, getattr(node, "values", None)):
            if isinstance(side, list) and side and all(isinstance(item, ast.Constant) for item in side):
                yield [item.value for item in side]


def ranking_tasks_are_listed(root: Path) -> set[str]:
    """Rule 4: the names of ranking tasks stand in the rows of `onerec.tasks`, and nobody lists them again."""
    found = {
        module(root, path)
        for path in files(root, *CODE)
        if any(map(_lists_ranking_tasks, _literal_lists(parsed(path))))
    }
    for path in (path for folder in CODE for path in (root / folder).rglob("*.sh")):
        # Runs of words, as in `for task in video ad; do` and in TASKS="video ad".
        lines = (line.partition("#")[0] for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines())
        runs = (re.findall(r"[\w.]+", run) for line in lines for run in re.split(r"[^\w.\s]", line))
        pairs = (pair for run in runs for pair in itertools.pairwise(run))
        if any(map(_lists_ranking_tasks, pairs)):
            found.add(str(path.relative_to(root)))
    return found


# A rule, files of a small house that break it, and the modules that are to be found.
BREACHES: list[tuple[Callable[[Path], set[str]], dict[str, str], set[str]]] = [
    (a_stage_imports_another, {"data/a.py": "def f():\n    from pretrain.train import x"}, {"data.a"}),
    (a_stage_imports_another, {"onerec/a.py": "import benchmarks.tasks"}, {"onerec.a"}),
    (
        the_runner_of_vllm_is_driven,
        {
            "verl_rl/a.py": "def f():\n    from vllm.v1.worker.gpu_worker import Worker",
            "onerec/items/b.py": "from vllm.forward_context import set_forward_context",
            "data/c.py": "from vllm import LLM",
        },
        {"verl_rl.a", "onerec.items.b"},
    ),
    (a_contract_imports_torch, {"onerec/a.py": "def f():\n    import torch.nn"}, {"onerec.a"}),
    (
        a_contract_imports_torch,
        {"onerec/a.py": "from onerec.items import b", "onerec/items/b.py": "from torch import nn"},
        {"onerec.a"},
    ),
    (
        a_contract_is_one_stages,
        {
            "onerec/a.py": "",
            "onerec/b.py": "import onerec.a",
            "data/c.py": "from onerec import a",
            "data/d.py": "from onerec.b import x",
            "verl_rl/e.py": "import onerec.b",
        },
        {"onerec.a"},
    ),
    (a_file_is_larger_than_a_room, {"scripts/perf/a.py": "x = 1\n" * 451}, {"scripts.perf.a"}),
    (
        imports_go_round,
        {
            "data/a.py": "from data import b",
            "data/b.py": "def f():\n    import data.c",
            "data/c.py": "from data.a import x",
            "data/d.py": "import data.a",
            "onerec/e.py": "",
        },
        {"data.a", "data.b", "data.c"},
    ),
    (
        the_sid_grammar_is_spelled,
        {"data/a.py": "x = [b'<s_a_1>']", "data/b.py": "f'<s_{1}_2>'", "data/c.py": "'<s_a_1>'"},
        {"data.a", "data.b"},
    ),
    (
        ranking_tasks_are_listed,
        {
            "data/a.py": "TASKS = ('label_pred', 'video', 'ad')",
            "data/b.py": "x = {'video': 'sft_video_rec', 'interactive': 1}",
            "onerec/c.py": "def f(x=['sft_ad_rec.parquet', 'sft_product_rec.parquet']):\n    pass",
            "data/d.py": "domains = ('video', 'ad', 'goods')\nalone = ['video', 'label_pred']",
            "data/a.sh": "for task in a video label_cond; do echo; done",
            "scripts/b.sh": ': "${TASKS:=video \\\n  ad}"',
            "scripts/c.sh": "# --tasks video ad\nTASKS=video run x ad",
        },
        {"data.a", "data.b", "onerec.c", "data/a.sh", "scripts/b.sh"},
    ),
    (the_sid_grammar_is_spelled, {"verl_rl/a.py": "def f(x='<|sid_begin|>'):\n    '<s_a_1>'"}, {"verl_rl.a"}),
    (
        the_marks_of_a_family_are_spelled,
        {
            "data/a.py": "x = r'</?think>'",
            "data/b.py": "def f():\n    '<|im_end|>'",
            "scripts/perf/c.py": "x = f'<|im_start|>{1}'",
            "verl_rl/d.py": "b'<|endoftext|>'.count",
            "onerec/render/e.py": "x = '<|im_end|>'",
            "pretrain/f.py": "from onerec.render.qwen3 import IM_END as im_end",
        },
        {"data.a", "scripts.perf.c", "verl_rl.d"},
    ),
]


@pytest.mark.parametrize(("rule", "house", "expected"), BREACHES)
def test_a_planted_breach_is_seen(rule, house, expected, tmp_path):
    for name, text in house.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rule(tmp_path) == expected


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in BREACHES))
def test_no_rule_is_broken(rule):
    assert rule(ROOT) == set()
