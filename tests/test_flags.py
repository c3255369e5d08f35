"""Every numeric flag of every script: its range is declared, and a value outside is one line with status 2."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import (
    COUNT,
    COUNT_OR_ALL,
    SEED,
    SHARE,
    SHARE_BELOW_1,
    ArgumentParser,
    Range,
    integer,
    number,
    pattern,
    plain_name,
    switch,
    variable_of,
)

ROOT = Path(__file__).resolve().parent.parent
# Scripts of other people's environments, or without flags.
NO_FLAGS = {
    "experiments/2026-11-25-sasrec-crosscheck/recbole_sasrec.py",
    "onerec/keeper.py",
    "onerec/verl/forkserver.py",
    "pretrain/launch.py",
    "scripts/alias_vllm_cpu.py",
    "scripts/watch.py",
}
OUTSIDE = ("nan", "inf", "-inf", "-5", "1e400", "10" * 15, "-" + "10" * 15, "four", "", "1;2", "0x10")


class Caught(BaseException):
    """Raised with the parser instead of reading a command line."""


def scripts() -> list[str]:
    """Every Python file that can be run."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [line for line in listed.stdout.splitlines() if not line.startswith("tests/")]
    return [file for file in files if '\nif __name__ == "__main__":' in (ROOT / file).read_text(encoding="utf-8")]


def parser_of(file: str) -> argparse.ArgumentParser:
    """The parser that a script makes, taken from it when it would read its command line."""

    def caught(self: argparse.ArgumentParser, *_: object) -> None:
        raise Caught(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "argv", [file])
        for method in ("parse_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, method, caught)
        name = "a_script_" + re.sub(r"\W", "_", file)
        spec = importlib.util.spec_from_file_location(name, ROOT / file)
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        try:
            if not hasattr(module, "main"):  # the script of one task
                from data.onerec_data.run import run_task

                run_task(f"{Path(file).parent.name}_{Path(file).stem}")
            elif inspect.signature(module.main).parameters:
                module.main([])
            else:
                module.main()
        except Caught as found:
            return found.args[0]
    raise AssertionError(f"{file} reads no command line")


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    return {file: parser_of(file) for file in scripts() if file not in NO_FLAGS}


def is_number(action: argparse.Action) -> bool:
    """Whether a flag takes numbers, whatever its type says."""
    values = action.default if isinstance(action.default, list | tuple) else [action.default]
    return any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def taken_by(action: argparse.Action) -> Range | None:
    """The range of a flag, alone or of each number of a list."""
    found = getattr(action.type, "__self__", action.type)
    return found if isinstance(found, Range) else None


def test_every_script_has_the_parser_of_the_house_and_every_numeric_flag_a_range(parsers):
    assert len(parsers) > 50
    bare = []
    for file, parser in parsers.items():
        assert type(parser) is ArgumentParser, file
        for action in parser._actions:
            if action.type in (int, float) or (is_number(action) and action.nargs != 0 and not taken_by(action)):
                bare.append(f"{file} {action.dest}")
    assert not bare


def test_defaults_and_what_the_help_promises_lie_inside(parsers):
    silent = []
    for file, parser in parsers.items():
        for action in parser._actions:
            if not (taken := taken_by(action)):
                continue
            values = action.default if isinstance(action.default, list | tuple) else [action.default]
            for value in values:
                assert value is None or isinstance(value, str) or value in taken, (file, action.dest, value)
            promised = re.search(r"\(?(-1|0): ?(all|none|off|never|by|the )", action.help or "")
            assert not promised or float(promised[1]) in taken, (file, action.dest, action.help)
            minus = -1 in taken and taken.low > -1
            if minus and "-1" not in (action.help or ""):
                silent.append((file, action.dest, action.help))
    assert not silent


def error_of(parser: argparse.ArgumentParser, arguments: list[str], capsys) -> str:
    """The line that a command line ends with; it is one, in the house's form, with status 2."""
    with pytest.raises(SystemExit) as ended:
        cli(lambda: parser.parse_args(arguments) and None)()
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "", arguments
    assert re.fullmatch(r"error: [^\n]+?: [^\n]+?; [^\n]+\n", said.err), (arguments, said.err)
    return said.err


def test_numbers_outside_of_their_ranges_are_one_line_each(parsers, capsys, monkeypatch):
    monkeypatch.setattr("onerec.cli.own_code_first", lambda: None)
    monkeypatch.setattr(sys, "argv", ["/a_script.py"])
    tried = 0
    for file, parser in parsers.items():
        for action in parser._actions:
            if not (taken := taken_by(action)):
                continue
            flag = action.option_strings[0]
            wrong = [text for text in OUTSIDE if not inside(taken, text)]
            assert {"nan", "inf", "four", ""} <= set(wrong), (file, flag)
            for text in [*wrong, *beside(taken)]:
                line = error_of(parser, [f"{flag}={text}"], capsys)
                assert line.startswith(f"error: {flag}: is "), (file, line)
                tried += 1
    assert tried > 2500


def inside(taken: Range, text: str) -> bool:
    try:
        return taken.kind(text) in taken
    except ValueError:
        return False


def beside(taken: Range) -> list[str]:
    """The numbers just outside of a range."""
    whole = taken.kind is int
    below = taken.low if taken.open_low else taken.low - 1 if whole else math.nextafter(taken.low, -math.inf)
    above = taken.high if taken.open_high else taken.high + 1 if whole else math.nextafter(taken.high, math.inf)
    return [repr(v) for v in (below, above) if v not in taken.also]


@pytest.mark.parametrize(
    ("taken", "good", "bad"),
    [
        (COUNT, {"1": 1, "2147483647": 2**31 - 1}, ["0", "-1", "1.0", "2147483648", "1e3"]),
        (COUNT_OR_ALL, {"-1": -1, "7": 7}, ["0", "-2"]),
        (SEED, {"0": 0, "4294967295": 2**32 - 1}, ["-1", "4294967296"]),
        (SHARE, {"0": 0.0, "1": 1.0, "1e-3": 1e-3}, ["1.0001", "-0.1", "nan"]),
        (SHARE_BELOW_1, {"0": 0.0, "0.999": 0.999}, ["1"]),
        (number(open_low=True, low=0), {"1e-9": 1e-9}, ["0", "inf", "1e999"]),
        (integer(0, 5, also=(-1,)), {"-1": -1, "5": 5}, ["-3", "6"]),
    ],
)
def test_a_range_takes_what_it_says_from_flags_and_from_json(taken, good, bad):
    for text, value in good.items():
        assert taken(text) == value and type(taken(text)) is taken.kind
        assert taken.of(value, "f.json", "key") == value
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="; give a"):
            taken(text)
    for value in (None, True, "1", [1], {}, math.nan, math.inf, 10**400):
        with pytest.raises(InputError, match=r"f\.json: key is .*; give a"):
            taken.of(value, "f.json", "key")


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "../../x", "/abs", "x" * 101, "é" * 51])
def test_a_name_is_no_path(text):
    with pytest.raises(argparse.ArgumentTypeError, match="give a name"):
        plain_name(text)
    assert plain_name("v1.0-sft 文") == "v1.0-sft 文"


def test_errors_of_argparse_take_the_form_of_the_house(capsys, monkeypatch):
    monkeypatch.setattr("onerec.cli.own_code_first", lambda: None)
    monkeypatch.setattr(sys, "argv", ["a_script.py"])
    parser = ArgumentParser("what it does")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", choices=("a", "b"))
    parser.add_argument("--many", nargs="+")
    parser.add_argument("--on", action="store_true")
    for arguments, said in (
        (["--out="], "error: --out: is empty; give a path\n"),
        (["--kind", "c"], "error: --kind: invalid choice: 'c'; choose from 'a', 'b'\n"),
        (["--many"], "error: --many: expected at least one argument; --help says what it takes\n"),
        (["--on=1"], "error: --on: ignored explicit argument '1'; --help says what it takes\n"),
        (["--nothing", "a\nb"], "error: --nothing a\\nb: is no flag of this command; --help lists them\n"),
    ):
        assert error_of(parser, arguments, capsys) == said
    parser.add_argument("--needed", required=True)
    assert error_of(parser, [], capsys) == "error: --needed: is missing; --help says what it is\n"


@pytest.fixture
def settable(monkeypatch):
    """A parser with a flag of every sort, and how it reads a command line in an environment."""

    def parse(*arguments: str, **variables: str) -> dict:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        parser = ArgumentParser("what it does")
        parser.add_argument("--num_beams", type=COUNT, default=32)
        parser.add_argument("--output_dir", type=Path, required=True)
        parser.add_argument("--beam_widths", type=COUNT, nargs="*", default=[])
        parser.add_argument("--sources", type=pattern, nargs="+")
        parser.add_argument("--dry_run", action="store_true")
        parser.add_argument("--two_stage", type=switch, default=True)
        parser.add_argument("--stage2_mode", choices=("beam", "sample"), default="beam")
        parser.add_argument("--device", default="auto")
        parser.add_argument("--seed", type=SEED, default=0)
        try:
            return vars(parser.parse_args(arguments))
        finally:
            for name in variables:
                monkeypatch.delenv(name)

    return parse


def test_a_flag_goes_before_the_environment_and_that_before_the_default(settable, capsys):
    assert settable("--output_dir", "o")["num_beams"] == 32 and not capsys.readouterr().out
    assert settable(OUTPUT_DIR="o", NUM_BEAMS="16")["num_beams"] == 16
    assert capsys.readouterr().out == "from the environment: NUM_BEAMS=16 OUTPUT_DIR=o\n"
    assert settable("--output_dir=o", "--num_beams", "8", NUM_BEAMS="none", OUTPUT_DIR="p")["num_beams"] == 8
    assert not capsys.readouterr().out
    assert settable("--output_dir", "o", NUM_BEAMS="")["num_beams"] == 32


def test_variables_are_checked_as_their_flags_are_and_errors_name_them(settable):
    for variables, said in (
        ({"NUM_BEAMS": "0"}, "NUM_BEAMS: is 0; give a whole number from 1"),
        ({"BEAM_WIDTHS": "1 x"}, "BEAM_WIDTHS: is x; give a whole number from 1"),
        ({"STAGE2_MODE": "best"}, "STAGE2_MODE: invalid choice: 'best'; choose from 'beam', 'sample'"),
        ({"DRY_RUN": "maybe"}, "DRY_RUN: is maybe; give 1 or true, 0 or false"),
    ):
        with pytest.raises(InputError) as error:
            settable("--output_dir", "o", **variables)
        assert str(error.value) == said
    with pytest.raises(InputError, match="--output_dir: is missing"):
        settable(OUTPUT_DIR="")


def test_lists_and_switches_in_variables(settable):
    for text in ("1 10", "1,10", "1, 10", "1\n10\n"):
        assert settable(OUTPUT_DIR="o", BEAM_WIDTHS=text)["beam_widths"] == [1, 10]
    assert settable(OUTPUT_DIR="o", SOURCES="/a b,/c")["sources"] == ["/a b", "/c"]
    assert settable(OUTPUT_DIR="o", SOURCES="/a,b\n/c d")["sources"] == ["/a,b", "/c d"]
    assert settable(OUTPUT_DIR="o", DRY_RUN="1")["dry_run"] and not settable(OUTPUT_DIR="o", DRY_RUN="0")["dry_run"]
    assert not settable(OUTPUT_DIR="o", TWO_STAGE="False")["two_stage"]


def test_the_help_says_defaults_and_which_flags_are_variables():
    parser = ArgumentParser("what it does")
    parser.add_argument("--num_beams", type=COUNT, default=32, help="beams")
    parser.add_argument("--device", default="auto", help="cpu or auto")
    parser.add_argument("--seed", type=SEED, default=0, help="seed")
    parser.add_argument("--tasks", nargs="+", help="tasks (default: all)")
    parser.add_argument("--dry_run", action="store_true", help="runs nothing")
    parser.add_argument("--names", nargs="*", default=["a", "5%"], help="names")
    told = " ".join(parser.format_help().split())
    for text in ("beams (default: 32)", "auto (default: auto)", "seed (default: 0)", "tasks (default: all) --dry_run"):
        assert text in told
    assert "runs nothing --names" in told and "names (default: a 5%)" in told
    assert told.endswith("can be set as a variable, --num_beams x as NUM_BEAMS=x; of one word: SEED")
    assert ArgumentParser("none").format_help().strip().endswith("exit")


def test_every_flag_has_a_help(parsers):
    without = [
        (file, flag.dest)
        for file, parser in parsers.items()
        for flag in parser._actions
        if not (flag.help or "").strip()
    ]
    assert [one for one in without if not one[0].startswith(("scripts/perf/", "experiments/"))] == []


# What torchrun, DeepSpeed, verl, Ray, SLURM, MPI, a shell or a container leave in the environment of a process.
OTHERS = """RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK NODE_RANK NPROC MASTER_ADDR MASTER_PORT
OMP_NUM_THREADS CUDA_VISIBLE_DEVICES SLURM_NNODES SLURM_JOB_ID RAY_ADDRESS RAY_JOB_ID VLLM_HOST_IP PATH HOME USER NAME
HOST HOSTNAME PORT SHELL TERM LANG PWD TMPDIR EDITOR PAGER DISPLAY LOGNAME MAIL VERSION DEVICE INPUT OUTPUT SOURCE
TARGET SPLIT FORMAT CONFIG MODEL MODE
DEBUG VERBOSE THREADS JOBS TASK TASKS HELP PYTHON ENV STAGE LIST TITLE USERS ITEMS DIM"""


def test_no_flag_takes_a_variable_that_others_export(parsers, settable):
    names = {variable_of(flag) for parser in parsers.values() for flag in parser._option_string_actions} - {None}
    assert len(names) > 150 and not names & set(OTHERS.split())
    assert settable(OUTPUT_DIR="o", DEVICE="meta", TASKS="x", RANK="0")["device"] == "auto"


class Broken:
    def __getitem__(self, key: str) -> None:
        raise KeyError("a\nb")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: Broken()["x"], "KeyError: 'a\\nb'; please report it"),
        (
            lambda: [].append(*range(3)),
            "TypeError: list.append() takes exactly one argument (3 given); please report it",
        ),
        (lambda: bytearray(1 << 60), "MemoryError; needs more memory than there is"),
        (lambda: "\ud800".encode(), "UnicodeEncodeError: "),
    ],
)
def test_what_nobody_foresaw_is_one_line_with_its_traceback_in_a_file(error, said, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("onerec.cli.own_code_first", lambda: None)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "a_script.py")])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(SystemExit) as ended:
        cli(error)()
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: a_script.py: {said}")
    path = Path(re.search(r"traceback: (.*)\)", line)[1])
    assert path.parent == tmp_path and "in run" in path.read_text(encoding="utf-8")


def test_a_recursion_without_end_is_one_line_too(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("onerec.cli.own_code_first", lambda: None)
    monkeypatch.setattr(sys, "argv", ["a_script.py"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def deep() -> None:
        deep()

    with pytest.raises(SystemExit):
        cli(deep)()
    assert capsys.readouterr().err.startswith("error: a_script.py: RecursionError: maximum recursion depth exceeded; ")


def test_an_error_crosses_processes_as_it_is():
    import pickle

    error = pickle.loads(pickle.dumps(InputError("f", "is wrong", "give another")))
    assert str(error) == "f: is wrong; give another" and error.right == "give another"
