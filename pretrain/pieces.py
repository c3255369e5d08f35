"""Tokenizing by pieces: text between added tokens is tokenized once and remembered, SIDs are looked up.

A tokenizer takes its added tokens (itemic tokens, turn marks) out of a text before anything else, so what stands between them is
tokenized for itself, and ids of the pieces are the ids of the whole. Recommendation data are SIDs between a few
wordings, so nearly every piece has been seen before. Where an added token reaches beyond itself (it strips spaces, or wants
whole words), texts are tokenized whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onerec.sid import BEGIN, END
from pretrain.tokenization import FastTokenizer, itemic_pattern

_REMEMBERED = 1 << 17  # pieces
_LONGEST = 2000  # characters of a piece that is remembered

Coded = tuple[list[int], list[int]]  # ids, and the first character of each


class PieceTokenizer(FastTokenizer):
    """`FastTokenizer` for many texts: the same ids and first characters (an end is not given).

    ``foreign`` is called with an itemic token that the vocabulary does not hold, and must raise.
    """

    def __init__(self, model_dir: str | Path, foreign: Callable[[str], None]) -> None:
        super().__init__(model_dir)
        self._foreign = foreign
        added = {token.content: (number, token) for number, token in self.backend.get_added_tokens_decoder().items()}
        self._ids = {text: number for text, (number, _) in added.items()}
        self._itemic = itemic_pattern()
        self._known: dict[str, Coded] = {}
        plain = all(
            not (token.lstrip or token.rstrip or token.single_word or (token.normalized and not text.isascii()))
            for text, (_, token) in added.items()
        )
        marks = sorted((text for text in added if not self._itemic.fullmatch(text)), key=lambda text: (-len(text), text))  # fmt: skip
        itemic = self._itemic.pattern
        sids = f"(?:{re.escape(BEGIN)}(?:{itemic})+{re.escape(END)})+"
        self._pieces = re.compile("(" + "|".join([sids, *map(re.escape, marks), itemic]) + ")")
        # Tokens of SIDs without their brackets, as a run of SIDs falls apart at "><".
        self._inner = {text[1:-1]: number for text, number in self._ids.items() if text[:1] + text[-1:] == "<>"}
        self._plain = plain

    def __call__(
        self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = True
    ) -> dict[str, Any]:
        """``input_ids`` and, as ``offset_mapping``, the first character of every token; of a SID, that of the SIDs it stands among."""
        if not self._plain:
            self._check(text)
            return super().__call__(text, add_special_tokens, return_offsets_mapping)
        ids: list[int] = []
        starts: list[int] = []
        position, known, added, begin = 0, self._known, self._ids, BEGIN
        for number, piece in enumerate(self._pieces.split(text)):
            if not piece:
                continue
            if number & 1:
                if piece.startswith(begin) and piece != begin:
                    coded = self._run(piece)
                    ids += coded
                    starts += [position] * len(coded)
                else:
                    ids.append(added[piece] if piece in added else self._unknown(piece))
                    starts.append(position)
            else:
                coded, first = known.get(piece) or self._learn(piece)
                ids += coded
                starts += [position + at for at in first] if position else first
            position += len(piece)
        return {"input_ids": ids, "offset_mapping": starts} if return_offsets_mapping else {"input_ids": ids}

    def _run(self, sids: str) -> list[int]:
        """Ids of SIDs that follow each other."""
        try:
            return list(map(self._inner.__getitem__, sids[1:-1].split("><")))
        except KeyError as error:
            return self._unknown(f"<{error.args[0]}>")

    def _unknown(self, token: str) -> Any:
        self._foreign(token)
        raise KeyError(token)

    def _learn(self, piece: str) -> Coded:
        """Ids and first characters of a text without added tokens."""
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
