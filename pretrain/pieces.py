"""Tokenizing by pieces: text between added tokens is tokenized once and remembered, a SID is looked up.

A tokenizer takes its added tokens (itemic tokens, turn marks) out of a text before anything else, so what stands between them is
tokenized for itself, and ids of the pieces are the ids of the whole. Recommendation data are SIDs between a few
wordings, so nearly every piece has been seen before. Where an added token reaches beyond itself (it strips spaces, or wants
whole words), texts are tokenized whole.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from onerec.sid import BEGIN, END
from pretrain.tokenization import FastTokenizer, itemic_pattern

_REMEMBERED = 1 << 17  # pieces
_LONGEST = 2000  # characters of a piece that is remembered
_TOKEN = re.compile(r"<[^<>]+>")  # the tokens of a SID, one by one

Coded = tuple[list[int], list[int]]  # ids, and the first character of each


class PieceTokenizer(FastTokenizer):
    """`FastTokenizer` for many texts: the same ids and first characters (an end is not given).

    ``foreign`` is called with an itemic token that the vocabulary does not hold, and must raise.
    """

    def __init__(self, model_dir: str | Path, foreign: Callable[[str], None]) -> None:
        super().__init__(model_dir)
        self._foreign = foreign
        added = {
            token.content: (number, token)
            for number, token in self.backend.get_added_tokens_decoder().items()
        }
        self._ids = {text: number for text, (number, _) in added.items()}
        self._itemic = itemic_pattern()
        self._known: dict[str, Coded] = {}
        plain = all(
            not (
                token.lstrip or token.rstrip or token.single_word or (token.normalized and not text.isascii())
            )
            for text, (_, token) in added.items()
        )
        marks = sorted((text for text in added if not self._itemic.fullmatch(text)), key=lambda text: (-len(text), text))  # fmt: skip
        itemic = self._itemic.pattern
        sid = f"{re.escape(BEGIN)}(?:{itemic})+{re.escape(END)}"
        self._pieces = re.compile("(" + "|".join([sid, *map(re.escape, marks), itemic]) + ")")
        self._plain = plain

    def __call__(
        self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = True
    ) -> dict[str, Any]:
        """``input_ids`` and, as ``offset_mapping``, the first character of every token."""
        if not self._plain:
            self._check(text)
            return super().__call__(text, add_special_tokens, return_offsets_mapping)
        ids: list[int] = []
        starts: list[int] = []  # of every token in its piece
        positions: list[int] = []
        counts: list[int] = []
        position, known = 0, self._known
        for number, piece in enumerate(self._pieces.split(text)):
            if not piece:
                continue
            coded = known.get(piece)
            if coded is None:
                coded = self._learn(piece, bool(number & 1))
            ids += coded[0]
            starts += coded[1]
            positions.append(position)
            counts.append(len(coded[0]))
            position += len(piece)
        if not return_offsets_mapping:
            return {"input_ids": ids}
        return {"input_ids": ids, "offset_mapping": np.array(starts, np.int64) + np.repeat(positions, counts)}

    def _learn(self, piece: str, marked: bool) -> Coded:
        """Ids and first characters of a piece: added tokens alone, or text without any."""
        if piece in self._ids:
            coded = [self._ids[piece]], [0]
        elif marked:
            tokens = _TOKEN.findall(piece)
            try:
                coded = (
                    [self._ids[token] for token in tokens],
                    [0, *itertools.accumulate(map(len, tokens[:-1]))],
                )
            except KeyError as error:
                self._foreign(error.args[0])
                raise
        else:
            found = self.backend.encode(piece, add_special_tokens=False)
            coded = found.ids, [start for start, _ in found.offsets]
        if len(piece) <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[piece] = coded
        return coded

    def _check(self, text: str) -> None:
        for match in self._itemic.finditer(text):
            if match[0] not in self._ids:
                self._foreign(match[0])
