"""The command line of every script: a flag is also a variable and says its range; an error is one line.

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--num_beams", type=COUNT, default=32, help="beams of the item search")

``--num_beams 16`` goes before NUM_BEAMS=16 in the environment, and that before the default. This is how the shell
scripts and the profiles (scripts/settings.py) set flags. The ranges read JSON values as well:
``COUNT.of(value, path, "max_length")``.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

from onerec.errors import InputError
from onerec.run import processes
from onerec.sid import LAYER_LETTERS

# What the C code below Python takes for a size, and a number that float32 holds with room.
_LARGEST, _HUGE = 2**31 - 1, 1e30


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers that a flag takes: ``low`` to ``high``, and ``also``; ``open_low``, ``open_high``: without that end.

    Called with text (as argparse's ``type``) or used by `of`, it gives an int or a float as ``kind`` says. Never NaN
    or infinity.
    """

    kind: type
    low: float
    high: float
    also: tuple[float, ...] = ()
    open_low: bool = False
    open_high: bool = False

    def __str__(self) -> str:
        """What would be right."""
        text = "a whole number" if self.kind is int else "a number"
        if self.low > -_HUGE:
            text += f" above {self.low:,}" if self.open_low else f" from {self.low:,}"
        if self.high not in (_HUGE, _LARGEST):
            text += f" to {'below ' if self.open_high else ''}{self.high:,}"
        return text + "".join(f", or {value}" for value in self.also)

    def __contains__(self, value: float) -> bool:
        if value in self.also:
            return True
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __call__(self, text: str) -> Any:
        """The number that a flag's ``text`` is."""
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if value not in self:
            raise argparse.ArgumentTypeError(f"is {text or 'empty'}; give {self}")
        return value

    def of(self, value: Any, file: object, key: str) -> Any:
        """A JSON value, checked; raises `InputError` that names ``file`` and ``key``."""
        kinds = (int,) if self.kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or value not in self:
            raise InputError(file, f"{key} is {repr(value)[:100]}", f"give {self}")
        return self.kind(value)


def integer(low: int, high: int = _LARGEST, also: tuple[int, ...] = ()) -> Range:
    """Whole numbers from ``low`` to ``high``, and those of ``also``."""
    return Range(int, low, high, also)


def number(low: float = -_HUGE, high: float = _HUGE, also: tuple[float, ...] = (), **ends: bool) -> Range:
    """Finite numbers from ``low`` to ``high``, and those of ``also``; ``open_low``, ``open_high``: without that end."""
    return Range(float, low, high, also, **ends)


COUNT = integer(1)
COUNT_OR_0 = integer(0)
COUNT_OR_ALL = integer(1, also=(-1,))
SEED = integer(0, 2**32 - 1)  # NumPy's and scikit-learn's; torch takes more
PROCESSES = integer(1, 1024)
LAYERS = integer(1, len(LAYER_LETTERS))
CODES = integer(1, 2**20)  # of a layer; each becomes a token
WIDTH = integer(1, 2**16)  # dimensions of a vector; no model of today has more
NUMBER = number()
POSITIVE = number(0, open_low=True)
NOT_NEGATIVE = number(0)
SHARE = number(0, 1)
SHARE_ABOVE_0 = number(0, 1, open_low=True)
SHARE_BELOW_1 = number(0, 1, open_high=True)
LOCAL, RAY = "local", "ray"  # what spreads the work (`onerec.workers`)
BOOT = integer(0, 100_000)  # resamples of a bootstrap; more change no digit that is shown


def switch(text: str) -> bool:
    """``1``, ``true`` or ``yes`` in any case; ``0``, ``false``, ``no`` or nothing."""
    if text.strip().lower() not in ("1", "true", "yes", "0", "false", "no", ""):
        raise argparse.ArgumentTypeError(f"is {text}; give 1 or true, 0 or false")
    return text.strip().lower() in ("1", "true", "yes")


def plain_name(text: str) -> str:
    """A name that a file or folder gets: no path."""
    if text in ("", ".", "..") or "/" in text or len(text.encode()) > 100:
        raise argparse.ArgumentTypeError(f"is {text or 'empty'}; give a name of at most 100 bytes without /")
    return text


def pattern(text: str) -> str:
    """A file, a folder or a pattern of files, as text."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a path")
    return text


def _path(text: str) -> Path:
    return Path(pattern(text))


# A flag of several words has a variable that nobody else uses. A single word (DEVICE, INPUT, SPLIT) may be exported for
# something else, or mean another thing in another script (TASKS, CONFIG). These alone are read from the environment.
_ONE_WORD = """
ADVANTAGE BALANCED BETA1 BETA2 CODEBOOK CONSTRAINED DATASETS DEEPSPEED DROPOUT EPOCHS FSDP INIT JUDGE LAYOUT LOGGER
LOSS LR NNODES NOUN PRECISION PROMPTS RECOMPUTE RESUME ROLLOUT RUNNER SEED SOURCES TEMPERATURE TOPK VALIDATION WINDOWS
WORKERS
"""
ONE_WORD = frozenset(_ONE_WORD.split())


def variable_of(flag: str) -> str | None:
    """The environment variable that sets ``--flag``; None where there is none."""
    name = flag.removeprefix("--").upper()
    return name if flag.startswith("--") and ("_" in name or name in ONE_WORD) else None


def words(text: str, paths: bool = False) -> list[str]:
    """A list in a variable: a line each, or commas or spaces between; ``paths`` may have spaces in them."""
    between = r"\n" if "\n" in text.strip() else r"," if paths else r"[,\s]"
    return [word.strip() for word in re.split(between, text) if word.strip()]


class _Help(argparse.RawDescriptionHelpFormatter):
    """A flag's help, and its default where it has one that the help does not say."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if action.required or action.nargs == 0 or default in (None, "", argparse.SUPPRESS) or "default:" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})" if shown else text


class ArgumentParser(argparse.ArgumentParser):
    """argparse with the house's errors: `InputError` instead of the usage; no path is empty.

    A flag that is not given is looked for in the environment (`variable_of`); an empty variable is one that is not set.
    """

    def __init__(self, description: str | None = None, **more: Any) -> None:
        more.setdefault("formatter_class", _Help)
        super().__init__(description=description, **more)
        self.register("type", Path, _path)

    def format_help(self) -> str:
        """argparse's help, and below it which flags are variables too."""
        names = {flag: variable_of(flag) for action in self._actions for flag in action.option_strings}
        several = [f"{flag} x as {name}=x" for flag, name in names.items() if name and "_" in name]
        single = [name for name in names.values() if name and "_" not in name]
        told = [f"A flag of several words can be set as a variable, {several[0]}"] if several else []
        told += [f"of one word: {', '.join(single)}"] if single else []
        self.epilog = "; ".join(told)
        return super().format_help()

    def add_max_bad_ratio(self) -> None:
        """The flag of every script that reads tables, for `Manifest.check_bad_ratio`."""
        self.add_argument(
            "--max_bad_ratio", type=SHARE, default=0.01, help="share of bad rows past which the run fails"
        )

    def add_runner(self) -> None:
        """The flag of every command whose work `onerec.workers.map_in_order` does."""
        where = "the Ray cluster at RAY_ADDRESS, or of one on this machine where that is not set"
        what = f"local: processes here; ray: tasks of {where}, whose nodes share a file system"
        self.add_argument("--runner", choices=(LOCAL, RAY), default=LOCAL, help=what)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, given = {}, {str(arg).partition("=")[0] for arg in (sys.argv[1:] if args is None else args)}
        for action in self._actions:
            for name in filter(None, map(variable_of, action.option_strings)):
                if (text := os.environ.get(name, "")) and not given & set(action.option_strings):
                    action.default, action.required = self._from_variable(action, name, text), False
                    found[name] = text
        if found and processes()[0] == 0:
            print("from the environment:", *(f"{name}={shlex.quote(text)}" for name, text in found.items()), flush=True)
        return super().parse_known_args(args, namespace)

    def _from_variable(self, action: argparse.Action, name: str, text: str) -> Any:
        """What a flag is with the variable ``name`` set to ``text``; raises `InputError` that names the variable."""
        several = action.nargs in ("+", "*")
        texts = words(text, action.type in (Path, pattern)) if several else [text]
        try:
            if action.nargs == 0:
                return switch(text) == action.const
            return self._get_values(action, texts)
        except argparse.ArgumentError as error:
            self.error(f"argument {name}: {error.message}")
        except argparse.ArgumentTypeError as error:
            self.error(f"argument {name}: {error}")

    def error(self, message: str) -> NoReturn:
        if found := re.match("the following arguments are required: (.*)", message, re.DOTALL):
            raise InputError(found[1], "is missing", "--help says what it is")
        if found := re.match("unrecognized arguments: (.*)", message, re.DOTALL):
            raise InputError(found[1], "is no flag of this command", "--help lists them")
        flag, _, what = message.removeprefix("argument ").partition(": ")
        what, _, right = re.sub(r" \((choose from .*)\)$", r"; \1", what, flags=re.DOTALL).partition("; ")
        raise InputError(flag, what or "cannot be taken", right or "--help says what it takes")
