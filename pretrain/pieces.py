"""Tokenizing by pieces: text between added tokens is tokenized once and remembered, SIDs are looked up.

A tokenizer cuts its added tokens (itemic tokens, turn marks) out of a text first, so the ids of what stands between
them do not depend on the rest. Recommendation data are SIDs between a few wordings: nearly every piece comes again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from onerec.model_folder import read_tokenizer
from onerec.sid import ANY_SID, BEGIN, ITEM_TOKEN

_REMEMBERED = 1 << 17  # pieces
_LONGEST = 2000  # characters of a piece that is remembered

Coded = tuple[list[int], list[int]]  # ids, and the first character of each


class PieceTokenizer:
    """``tokenizer.json`` behind the one call that `onerec.render.Renderer.encode` makes, without loading transformers.

    ``foreign`` is called with an itemic token that the vocabulary does not hold, and must raise.
    """

    def __init__(self, model_dir: str | Path, foreign: Callable[[str], NoReturn]) -> None:
        self.backend = read_tokenizer(model_dir)
        self._foreign = foreign
        added = {token.content: (number, token) for number, token in self.backend.get_added_tokens_decoder().items()}
        self._ids = {text: number for text, (number, _) in added.items()}
        self._itemic = re.compile(ITEM_TOKEN)
        self._known: dict[str, Coded] = {}
        # An added token that strips spaces or wants whole words changes the text beside it: then texts are tokenized
        # whole.
        self._plain = not any(
            token.lstrip or token.rstrip or token.single_word or (token.normalized and not text.isascii())
            for text, (_, token) in added.items()
        )
        marks = sorted(
            (text for text in added if not self._itemic.fullmatch(text)), key=lambda mark: (-len(mark), mark)
        )
        self._pieces = re.compile("(" + "|".join([f"(?:{ANY_SID})+", *map(re.escape, marks), ITEM_TOKEN]) + ")")
        # Tokens of SIDs without their brackets, as a run of SIDs falls apart at "><".
        self._inner = {text[1:-1]: number for text, number in self._ids.items() if text[:1] + text[-1:] == "<>"}

    def __call__(
        self, text: str, add_special_tokens: bool = False, return_offsets_mapping: bool = True
    ) -> dict[str, Any]:
        """``input_ids`` and, as ``offset_mapping``, each token's first character (a SID's: its run's)."""
        ids, starts = self._by_pieces(text) if self._plain else self._whole(text)
        return {"input_ids": ids, "offset_mapping": starts} if return_offsets_mapping else {"input_ids": ids}

    def _by_pieces(self, text: str) -> Coded:
        ids: list[int] = []
        starts: list[int] = []
        position, known, added = 0, self._known, self._ids
        for number, piece in enumerate(self._pieces.split(text)):
            if not piece:
                continue
            if number % 2 == 0:
                coded, first = known.get(piece) or self._learn(piece)
                ids += coded
                starts += [position + at for at in first] if position else first
            elif piece.startswith(BEGIN) and piece != BEGIN:
                coded = self._run(piece)
                ids += coded
                starts += [position] * len(coded)
            else:
                ids.append(added[piece] if piece in added else self._foreign(piece))
                starts.append(position)
            position += len(piece)
        return ids, starts

    def _run(self, sids: str) -> list[int]:
        """Ids of SIDs that follow each other."""
        try:
            return list(map(self._inner.__getitem__, sids[1:-1].split("><")))
        except KeyError as error:
            self._foreign(f"<{error.args[0]}>")

    def _learn(self, piece: str) -> Coded:
        """Ids and first characters of a text without added tokens."""
        found = self.backend.encode(piece, add_special_tokens=False)
        coded = found.ids, [start for start, _ in found.offsets]
        if len(piece) <= _LONGEST:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[piece] = coded
        return coded

    def _whole(self, text: str) -> Coded:
        for match in self._itemic.finditer(text):
            if match[0] not in self._ids:
                self._foreign(match[0])
        found = self.backend.encode(text, add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]
