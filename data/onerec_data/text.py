"""Text on its way into JSON: templates, draws and messages as bytes that are already escaped.

A history of 512 SIDs is 28 kB of plain ASCII. Put into a Python string beside Chinese words it would be widened,
encoded and scanned for escapes again for every record; as bytes it is copied once. Everything called *escaped* here
is UTF-8 that can stand between two quotation marks of a JSON document.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import orjson

from onerec.records import CHAT_MARK, ROLES
from onerec.render import THINK_CLOSE, THINK_OPEN
from onerec.sid import ITEM_OR_MARK

# What no text of a log may hold: turns, thoughts and items are marked so, and a model would learn them as such.
MARK = re.compile("|".join((CHAT_MARK.pattern, THINK_OPEN, THINK_CLOSE, ITEM_OR_MARK)))
T = TypeVar("T")
Turn = tuple[str, bytes]


def escaped(text: str) -> bytes:
    """``text`` as it stands inside a JSON string."""
    return orjson.dumps(text)[1:-1]


class Template:
    """A text with ``{name}`` fields, parsed once; those of ``fixed`` are filled in for good."""

    __slots__ = ("_fields", "_format")

    def __init__(self, text: str, fixed: Mapping[str, str]) -> None:
        form, fields = b"", []
        for literal, field, _, _ in string.Formatter().parse(text):
            form += escaped(literal + fixed.get(field, "")).replace(b"%", b"%%")
            if field is not None and field not in fixed:
                form += b"%b"
                fields.append(field)
        self._fields = tuple(fields)
        self._format = form if fields else form.replace(b"%%", b"%")

    def fill(self, **fields: bytes) -> bytes:
        """The text with its fields replaced by escaped ones."""
        return self._format % tuple([fields[name] for name in self._fields]) if self._fields else self._format

    def text(self, **fields: str) -> str:
        """As `fill`, of plain text."""
        return orjson.loads(b'"%b"' % self.fill(**{name: escaped(value) for name, value in fields.items()}))


class Draws:
    """Picks from lists, from what a row is: the seed, a task and an id. Order and workers have no say."""

    __slots__ = ("_bits",)

    def __init__(self, seed: int, task: str, *what: object) -> None:
        key = "\x1f".join([str(seed), task, *map(str, what)]).encode()
        self._bits = int.from_bytes(hashlib.blake2b(key, digest_size=32).digest(), "big")

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``; each call is an independent draw (of 256 bits in all)."""
        self._bits, place = divmod(self._bits, len(options))
        return options[place]


_TURN = {role: b'{"role":"%b","content":[{"type":"text","text":"' % role.encode() for role in ROLES}


def messages_json(turns: Iterable[Turn]) -> bytes:
    """The ``messages`` field of escaped turns."""
    # One join over all the pieces: a long history is copied once.
    pieces = [piece for role, text in turns for piece in (b'"}]},', _TURN[role], text)]
    pieces[0] = b"["
    pieces.append(b'"}]}]')
    return b"".join(pieces)


def segments_json(text: bytes) -> bytes:
    """The ``segments`` field of one escaped text."""
    return b'[{"type":"text","text":"%b"}]' % text
