"""Sets of prompts: what the tasks say, in one language, with the word for an item. Two ship in ``prompts/``.

A set of your own is a JSON file like them. `load_prompts` holds it to ``zh.json``: the same keys, a list of wordings
where that has one, and the placeholders of its wordings in every one. ``{noun}`` and ``{nouns}`` may stand anywhere.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.onerec_data.text import MARK, Template
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.prompts import Words
from onerec.run import read_json

FOLDER = Path(__file__).parent / "prompts"
DEFAULT = "zh"  # the release's, which every other set is held to
NOUN, NOUNS = "noun", "nouns"
_LONGEST = 40  # characters of a noun
_RIGHT = "a word, or two where the plural is another one: video, person/people"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A set of prompts, its lists of texts turned into lists of `Template`; ``words`` are for the benchmark."""

    words: Words
    sections: dict[str, Any]

    def __getitem__(self, section: str) -> Any:
        """A section: a list of templates, or an object of such lists or of texts."""
        return self.sections[section]


def add_prompts(parser: ArgumentParser, noun: bool = True) -> None:
    """The flags of what makes texts; ``noun``: whether it says what an item is."""
    names = ", ".join(shipped())
    parser.add_argument("--prompts", default=DEFAULT, help=f"the tasks' wordings: {names}, or a JSON file like theirs")
    if noun:
        parser.add_argument("--noun", default="", help=f"what an item is called; {_RIGHT} (the set's own)")


def shipped() -> list[str]:
    """The names of the sets in ``prompts/``."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_prompts(name: str, noun: str = "") -> Prompts:
    """A set by its name or its file, with the word for an item, ``singular`` or ``singular/plural``; empty: its own.

    Raises `InputError` for a set that is none, for the first key of a file that is wrong, and for no such word.
    """
    path = FOLDER / f"{name}.json" if name in shipped() else Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, shipped())
        raise InputError("--prompts", f"{name} is no set of prompts", " or ".join(near) or _sets())
    value = read_json(path)
    _check(path, value, read_json(FOLDER / f"{DEFAULT}.json"))
    if value["answer"]["yes"].strip() == value["answer"]["no"].strip():
        raise InputError(path, "answer.yes and answer.no are the same", "two answers")
    one, many = nouns_of(noun or value[NOUN], value["language"], "--noun" if noun else path)
    given = (one, many) if noun else ("", "")
    words = Words(path.stem, value["language"], *given, value["answer"]["yes"], value["answer"]["no"])
    return Prompts(words, _templates(value, {NOUN: one, NOUNS: many}))


def language_of(name: str) -> str:
    """The language of a set, for the texts that are written beside it."""
    return load_prompts(name).words.language


def nouns_of(text: str, language: str, place: object) -> tuple[str, str]:
    """(singular, plural) of ``singular/plural``, or of a singular: its English plural, or the same word."""
    one, sign, many = (part.strip() for part in text.partition("/"))
    if not sign:
        many = plural(one) if language == "en" else one
    for word in (one, many):
        if not word or len(word) > _LONGEST or re.search(r"[{}/\x00-\x1f]", word) or MARK.search(word):
            raise InputError(place, f"is {text or 'empty'}", _RIGHT)
    return one, many


def plural(noun: str) -> str:
    """The regular English plural of a noun."""
    if re.search("[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return noun + ("es" if re.search("(s|x|z|ch|sh)$", noun) else "s")


def _sets() -> str:
    return f"{', '.join(shipped())}, or the path of a JSON file like theirs"


def _templates(value: Any, nouns: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _templates(inner, nouns) for key, inner in value.items()}
    return [Template(text, nouns) for text in value] if isinstance(value, list) else value


def _check(path: Path, value: Any, model: Any, place: str = "") -> None:
    """Raise `InputError` where ``value`` has not the form of ``model``; ``place`` says where in the file."""
    if isinstance(model, list):
        _check_wordings(path, value, {field for text in model for field in _fields(text)} - {NOUN, NOUNS}, place)
    elif isinstance(model, str):
        if not isinstance(value, str) or not value.strip():
            raise InputError(path, f"{place} is {value!r}", "text")
    else:
        _check_keys(path, value, model, place)


def _check_keys(path: Path, value: Any, model: dict[str, Any], place: str) -> None:
    dot = f"{place}." if place else ""
    if not isinstance(value, dict):
        raise InputError(path, f"{place or 'it'} is no JSON object", f"an object with {', '.join(_keys(model))}")
    for key in _keys(value):
        if key not in model:
            near = difflib.get_close_matches(key, _keys(model)) or _keys(model)
            raise InputError(path, f"has an unknown key {dot}{key}", f"one of {', '.join(near)}")
    for key in _keys(model):
        if key not in value:
            raise InputError(path, f"has no {dot}{key}", f"what {DEFAULT}.json has there, in your words")
        _check(path, value[key], model[key], f"{dot}{key}")


def _keys(value: dict[str, Any]) -> list[str]:
    return [key for key in value if key != "_"]


def _check_wordings(path: Path, value: Any, wanted: set[str], place: str) -> None:
    if not isinstance(value, list) or not value:
        raise InputError(path, f"{place} is {'an empty list' if value == [] else repr(value)[:60]}", "a list of texts")
    shown = ", ".join(f"{{{field}}}" for field in (*sorted(wanted), NOUN, NOUNS))
    for text in value:
        if not isinstance(text, str) or not text.strip() or MARK.search(text):
            raise InputError(path, f"{place} has {text!r}", "text without marks of chats or items")
        try:
            fields = set(_fields(text))
        except ValueError as error:
            raise InputError(
                path, f"{place}: {text!r} does not parse ({error})", f"{shown}; {{{{ for a brace"
            ) from None
        if missing := sorted(wanted - fields):
            raise InputError(path, f"{place}: {text!r} has no {{{missing[0]}}}", f"every wording has it; of {shown}")
        if unknown := sorted(fields - wanted - {NOUN, NOUNS}):
            raise InputError(path, f"{place}: {text!r} has the unknown placeholder {{{unknown[0]}}}", f"of {shown}")


def _fields(text: str) -> Iterator[str]:
    """The placeholders of a text, as they are written."""
    for _, field, form, conversion in string.Formatter().parse(text):
        if field is not None:
            yield field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
