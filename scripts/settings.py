"""The settings of a run: a profile's lines, `--set` of the quickstart, and which names each stage knows.

    python3 scripts/settings.py list <profile>                 check all, print them as <stage>.<NAME>=<value>
    python3 scripts/settings.py export <profile> <stage>       shell lines for eval; the environment's own stay
    python3 scripts/settings.py file <profile> <name>          path of a file without settings, as pretrain.json
    python3 scripts/settings.py alone <profile>                as list; refuses settings in the environment

A profile is a folder of scripts/profiles: <stage>.env has lines NAME=value, and a file ``parent`` may name the profile
that it builds on. Before them go lines <stage>.<NAME>=<value>: those that scripts/sizes.py measured on the run's data
($RUN_DIR/raw_data/sizes.env; not for ``alone``), and before these the quickstart's ONEREC_SETTINGS.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser, variable_of
from onerec.run import ROOT

PROFILES = ROOT / "scripts" / "profiles"
_TRAIN = "pretrain/scripts/common.sh pretrain/options.py"
# What a stage runs: its numbered scripts first, whose own assignments no profile can change.
STAGES = {
    "world": "scripts/01_*.sh data/make_toy_world.py data/adapters/*.py",
    "tokenizer": "scripts/02_*.sh data/cooccurrence.py tokenizer/[eirt]*_*.py tokenizer/choose_sizes.py",
    "data": "scripts/03_*.sh data/onerec_data/run.* data/onerec_data/wording.py data/mix.sh data/prepare_[dmprs]*.sh "
    "data/prepare_[dmr]*.py",
    "base": "scripts/0[45]_*.sh pretrain/scripts/train_base.sh pretrain/scripts/expand_qwen3_vocab.sh "
    f"pretrain/make_tiny_qwen3.py pretrain/expand_vocab.py {_TRAIN}",
    "stg1": f"scripts/06_*.sh pretrain/run_pretrain_stg1_local.sh pretrain/examples/pretrain_stg1.sh {_TRAIN}",
    "stg2": f"scripts/07_*.sh pretrain/run_pretrain_stg2_local.sh pretrain/examples/pretrain_stg2.sh {_TRAIN}",
    "sft": f"scripts/08_*.sh pretrain/examples/posttrain_sft.sh {_TRAIN}",
    "distill": "scripts/09_*.sh verl_distillation/recipe/onpolicy_distill/*.sh verl_distillation/distill.py",
    "grpo": "scripts/10_*.sh verl_rl/recipe/onerec/*.sh verl_rl/options.py",
    "evaluate": "scripts/11_*.sh scripts/choose_checkpoint.sh "
    "benchmarks/evaluate.py benchmarks/model.py benchmarks/baselines.py benchmarks/choose_checkpoint.py",
}
# Of the whole run, not of one stage: the quickstart's own flags and variables, and the machine's.
_OF_THE_RUN = """
SEED MOVIELENS_DIR AMAZON_SEQUENCES AMAZON_ATTRIBUTES OWN_ITEMS OWN_LOGS OWN_COLUMNS SID_CODES RAW_DATA
BENCHMARK_DATA_DIR BENCHMARK_BASE_DIR
RUN_DIR VERSION PROFILE PYTHON VENV NPROC NNODES NODE_RANK MASTER_ADDR MASTER_PORT TOKENIZERS_PARALLELISM
"""
OF_THE_RUN = frozenset(_OF_THE_RUN.split())


@functools.cache
def known(stage: str) -> set[str]:
    """The names that a profile may set for a stage: flags of its Python scripts and variables of its shell scripts.

    Not those that its numbered script fixes, as the folders of the run.
    """
    names: set[str] = set()
    fixed: set[str] = set()
    for path in (path for pattern in STAGES[stage].split() for path in sorted(ROOT.glob(pattern))):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py":
            flags = re.findall(r'"(--[a-z][a-z0-9_]*)"', text) + re.findall(r"add_(max_bad_ratio|runner)\(", text)
            names |= {name for flag in flags if (name := variable_of(f"--{flag.removeprefix('--')}"))}
        else:
            text = re.sub(r"(?m)(^| )#.*", "", text)
            names |= set(re.findall(r"\$\{([A-Z][A-Z0-9_]*):?[=+-]", text))
            if path.parent == ROOT / "scripts":
                fixed |= set(re.findall(r"(?:^|\s)([A-Z][A-Z0-9_]*)=", text))
                fixed |= {flag[2:].upper() for flag in re.findall(r"--\w+_(?:dir|path)\b", text)}
    quickstart = (ROOT / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    names |= {name for of, name in re.findall(r"setting (\w+) ([A-Z_]+)", quickstart) if of == stage}
    return names - fixed - OF_THE_RUN


def check(place: str, stage: str, name: str) -> None:
    """Raise `InputError` where a stage knows no such setting."""
    if stage not in STAGES:
        raise InputError(place, f"{stage} is no stage", ", ".join(STAGES))
    names = known(stage)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3)
    others = [other for other in STAGES if name in known(other)]
    if others:
        right = f"it is one of {', '.join(others)}"
    else:
        right = " or ".join(near) if near else "a flag of its scripts in capitals"
    raise InputError(place, f"{name} is no setting of {stage}", right)


def read_lines(path: Path) -> dict[str, str]:
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = ["", ""]
        if not words:
            continue
        name, sign, value = words[0].partition("=")
        if len(words) > 1 or not sign or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            raise InputError(path, f"line {number} is {line.strip()}", "NAME=value, a value with spaces in quotes")
        found[name] = value
    return found


def folders(profile: str) -> list[Path]:
    """A profile's folder and those that it builds on, its own first."""
    found: list[Path] = []
    while profile:
        folder = PROFILES / profile
        if "/" in profile or not folder.is_dir() or folder in found:
            every = ", ".join(sorted(path.name for path in PROFILES.iterdir() if path.is_dir()))
            raise InputError(f"scripts/profiles/{profile}", "is no profile", f"PROFILE is one of {every}")
        found.append(folder)
        parent = folder / "parent"
        profile = parent.read_text(encoding="utf-8").strip() if parent.exists() else ""
    return found


def file_of(profile: str, name: str) -> Path:
    """A file of a profile without settings (a mix), its own or that of the profile that it builds on."""
    return next((folder / name for folder in folders(profile) if (folder / name).exists()), folders(profile)[0] / name)


def settings(profile: str, more: str = "") -> dict[str, dict[str, str]]:
    """Every setting of a run by stage; ``more``: the lines of `--set`. Raises `InputError` for an unknown name."""
    found: dict[str, dict[str, str]] = {stage: {} for stage in STAGES}
    for line in filter(None, more.split("\n")):  # the last of several goes
        stage, name, value = parse(line)
        found[stage][name] = value
    for folder in folders(profile):
        for path in sorted(folder.glob("*.env")):
            for name, value in read_lines(path).items():
                check(str(path.relative_to(ROOT)), path.stem, name)
                found[path.stem].setdefault(name, value)
    return found


def parse(line: str) -> tuple[str, str, str]:
    """(stage, name, value) of ``<stage>.<NAME>=<value>``; raises `InputError` where it is none."""
    taken = re.fullmatch(r"([a-z0-9]+)\.([A-Z][A-Z0-9_]*)=(.*)", line)
    if not taken:
        raise InputError("--set", f"is {line or 'empty'}", "<stage>.<NAME>=<value>, as grpo.LEARNING_RATE=1e-3")
    check(f"--set {line}", taken[1], taken[2])
    return taken[1], taken[2], taken[3]


def measured() -> str:
    """The lines of scripts/sizes.py for the run of RUN_DIR, without their reasons; empty where it has none."""
    path = Path(os.environ.get("RUN_DIR", ""), "raw_data", "sizes.env")
    if not os.environ.get("RUN_DIR") or not path.is_file():
        return ""
    lines = (line.partition(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def refuse_environment() -> None:
    """Raise `InputError` for a setting in the environment: a chain would give it to every stage."""
    for name in sorted(os.environ):
        stages = [stage for stage in STAGES if os.environ[name] and name in known(stage)]
        if stages:
            value = shlex.quote(os.environ[name])
            right = f"unset it, or name the stage: {' or '.join(f'--set {stage}.{name}={value}' for stage in stages)}"
            raise InputError(name, "is set in the environment, where every stage of the chain would take it", right)


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", choices=("list", "export", "file", "alone"), help="as above")
    parser.add_argument("profile", help="a folder of scripts/profiles")
    parser.add_argument("of", nargs="?", default="", help="the stage of export, the name of file")
    args = parser.parse_args(argv)
    if args.what == "file":
        print(file_of(args.profile, args.of))
        return
    if args.what == "export" and args.of not in STAGES:
        raise InputError("export", f"{args.of or 'nothing'} is no stage", ", ".join(STAGES))
    sizes = "" if args.what == "alone" else measured()
    found = settings(args.profile, f"{sizes}\n{os.environ.get('ONEREC_SETTINGS', '')}")
    if args.what == "alone":
        refuse_environment()
    if args.what == "export":
        for name, value in found[args.of].items():
            if value and not os.environ.get(name):
                print(f"export {name}={shlex.quote(value)}")
    else:
        for stage, values in found.items():
            for name in sorted(values):
                print(f"{stage}.{name}={shlex.quote(values[name])}")


if __name__ == "__main__":
    cli(main)()
