"""OpenOneRec's words that have another name here, or none: the table of docs/from_openonerec.md.

The table is read, not copied: by every Python script for its flags (`onerec.cli.cli`), by the dataset configs for their keys, and
by ``scripts/entry.sh`` for the variables of the shell scripts.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from onerec.errors import InputError
from onerec.run import ROOT

TABLE = ROOT / "docs" / "from_openonerec.md"
WORKS, REFUSED, MOVED = "works", "in its place", "elsewhere"


@dataclasses.dataclass(frozen=True)
class Word:
    """A row: the word ``old``, its name ``new`` here (the same, another, or a dash), ``how`` it is taken and ``what`` it does.

    ``scripts``: the files that the row's heading names.
    """

    scripts: tuple[str, ...]
    old: str
    new: str
    how: str
    what: str

    def refusal(self, file: str = "") -> InputError:
        """The one line of a word that has no place here; ``file``: where it stands, unless it is a flag."""
        right = self.what if self.new == "–" else f"{self.new}: {self.what}"
        return InputError(file or self.old, f"{self.old if file else ''} is OpenOneRec's".strip(), right)


def read_words() -> list[Word]:
    """Every row of the table; none where the documents are not installed."""
    words: list[Word] = []
    scripts: tuple[str, ...] = ()
    for line in TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else ():
        if line.startswith("#"):
            scripts = tuple(re.findall(r"`([^`]+)`", line))
        elif line.startswith("| `"):
            old, new, how, what = (cell.strip().replace("`", "") for cell in line.split("|")[1:5])
            words.append(Word(scripts, old, new, how, what))
    return words


def words_of(script: str) -> dict[str, Word]:
    """The words of one file, by its path from the root."""
    return {word.old: word for word in read_words() if script in word.scripts}


def translated(script: Path, arguments: Sequence[str]) -> list[str]:
    """A Python script's arguments with OpenOneRec's flags renamed.

    Raises `InputError` for one that has no place here; where there are several, a line each.
    """
    path = script.resolve()
    words = words_of(str(path.relative_to(ROOT))) if path.is_relative_to(ROOT) else {}
    taken, refused = [], []
    for argument in arguments:
        flag, sign, value = argument.partition("=")
        word = words.get(flag) if flag.startswith("--") else None
        if word and word.how == REFUSED:
            refused.append(word.refusal())
        taken.append(word.new + sign + value if word and word.how == WORKS else argument)
    for error in refused[:-1]:
        print(f"error: {error}", file=sys.stderr)
    if refused:
        raise refused[-1]
    return taken
