"""The SID grammar: how the codes of an item become itemic tokens, and back. The one place where it is written.

A SID (semantic id) is one code a codebook layer. As text, with three layers:
``<|sid_begin|><s_a_340><s_b_6566><s_c_5603><|sid_end|>``. When a vocabulary is expanded the new tokens come in
the order of `SidSpec.tokens`: all of layer a, all of layer b, all of layer c, then begin and end
(OpenOneRec, arXiv 2512.24762).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onerec.errors import InputError
from onerec.files import SID_SPEC
from onerec.run import read_json, write_json

MARK_START = "<|sid_"
BEGIN, END = f"{MARK_START}begin|>", f"{MARK_START}end|>"
LAYER_LETTERS = "abcdefgh"
MAX_CODES = 1 << 24  # of a layer: a vocabulary holds every one
# An itemic token, in angle brackets: a run of SIDs falls apart at "><".
TEMPLATE = "<s_{layer}_{code}>"
_PARTS = [TEMPLATE.format(layer=letter, code=" ").split(" ") for letter in LAYER_LETTERS]


def _token_pattern(layer: str, code: str = r"(\d+)") -> str:
    """`TEMPLATE` as a pattern, with patterns in the places of layer and code."""
    return re.escape(TEMPLATE).replace(r"\{layer\}", layer).replace(r"\{code\}", code)


_TOKEN = re.compile(_token_pattern(f"([{LAYER_LETTERS}])"))
# Patterns, for `re` and for Arrow: an itemic token, a token or a mark, a whole SID of any number of layers.
ITEM_TOKEN = _token_pattern(f"[{LAYER_LETTERS}]", r"\d+")
ITEM_OR_MARK = "|".join((ITEM_TOKEN, re.escape(BEGIN), re.escape(END)))
ANY_SID = f"{re.escape(BEGIN)}(?:{ITEM_TOKEN})+{re.escape(END)}"


@dataclasses.dataclass(frozen=True)
class SidSpec:
    """Layers, codebook sizes and token texts of a catalogue's SIDs; with ids once a checkpoint holds them.

    ``codebook_sizes[l]`` is the number of codes of layer ``l``. ``first_id`` is the vocabulary id of the first
    itemic token (None before expansion). ``collision`` names the policy that made the codes unique, or ``none``.
    """

    codebook_sizes: tuple[int, ...]
    first_id: int | None = None
    collision: str = "none"

    def __post_init__(self) -> None:
        sizes = [size for size in self.codebook_sizes if type(size) is int and 1 <= size <= MAX_CODES]
        if not 1 <= len(self.codebook_sizes) == len(sizes) <= len(LAYER_LETTERS):
            right = f"1 to {len(LAYER_LETTERS)} numbers from 1 to {MAX_CODES:,}"
            raise ValueError(f"codebook sizes {self.codebook_sizes} are not {right}")
        if self.first_id is not None and (type(self.first_id) is not int or not 0 <= self.first_id < 1 << 31):
            raise ValueError(f"first id {self.first_id!r} is not an id of a vocabulary")

    @property
    def n_layers(self) -> int:
        return len(self.codebook_sizes)

    def token(self, layer: int, code: int) -> str:
        """The itemic token of ``code`` in ``layer``; ``<s_a_340>`` for layer 0, code 340."""
        before, after = _PARTS[layer]
        return f"{before}{code}{after}"

    @functools.cached_property
    def tokens(self) -> list[str]:
        """Every new token in vocabulary order: layer by layer, then begin and end."""
        layers = [self.token(layer, code) for layer, size in enumerate(self.codebook_sizes) for code in range(size)]
        return [*layers, BEGIN, END]

    def check(self, codes: Sequence[int]) -> str | None:
        """None where ``codes`` fit the codebooks, otherwise what is wrong with them."""
        if len(codes) != self.n_layers:
            return f"has {len(codes)} codes"
        for layer, (code, size) in enumerate(zip(codes, self.codebook_sizes, strict=True)):
            if not 0 <= code < size:
                return f"code {code} of layer {LAYER_LETTERS[layer]} is outside 0 to {size - 1}"
        return None

    def text(self, codes: Sequence[int]) -> str:
        """The SID text of one item, with begin and end; raises ValueError where a code is outside its codebook."""
        if wrong := self.check(codes):
            raise ValueError(f"SID {list(codes)} {wrong}")
        return self.format(codes)

    def format(self, codes: Iterable[int]) -> str:
        """As `text`, without the check (for codes that were checked when they were read)."""
        return BEGIN + "".join(self.token(layer, code) for layer, code in enumerate(codes)) + END

    def parse(self, text: str) -> list[tuple[int, ...]]:
        """Every whole SID in ``text``, in order; those with a code outside its codebook are left out."""
        found = [tuple(map(int, match.groups())) for match in self.pattern.finditer(text)]
        return [codes for codes in found if self.check(codes) is None]

    def foreign(self, text: str) -> str | None:
        """The first itemic token in ``text`` that these codebooks do not have; None where there is none."""
        for match in _TOKEN.finditer(text):
            layer, code = LAYER_LETTERS.index(match[1]), match[2]
            size = self.codebook_sizes[layer] if layer < self.n_layers else 0
            if len(code) > 8 or int(code) >= size:
                return match[0]
        return None

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        """A whole SID of these layers, a group a code."""
        body = map(_token_pattern, LAYER_LETTERS[: self.n_layers])
        return re.compile(re.escape(BEGIN) + "".join(body) + re.escape(END))

    # Ids in a checkpoint's vocabulary.

    @functools.cached_property
    def layer_ranges(self) -> list[tuple[int, int]]:
        """(first id, last id) of every layer, both inclusive."""
        starts = np.cumsum([self._first(), *self.codebook_sizes])
        return [(int(a), int(b) - 1) for a, b in itertools.pairwise(starts)]

    @property
    def begin_id(self) -> int:
        """Vocabulary id of the begin token."""
        return self._first() + sum(self.codebook_sizes)

    @property
    def end_id(self) -> int:
        """Vocabulary id of the end token, the last itemic id."""
        return self.begin_id + 1

    @property
    def id_range(self) -> tuple[int, int]:
        """(first, last) itemic id, begin and end included, both inclusive."""
        return self._first(), self.end_id

    def token_ids(self, codes: np.ndarray) -> np.ndarray:
        """Vocabulary ids, int64 of the shape of ``codes`` (…, n_layers), without begin and end."""
        return np.asarray(codes, dtype=np.int64) + np.array([first for first, _ in self.layer_ranges])

    def _first(self) -> int:
        if self.first_id is None:
            raise ValueError("this SidSpec has no vocabulary ids: it does not come from a checkpoint")
        return self.first_id

    # The file.

    def as_dict(self) -> dict[str, Any]:
        value: dict[str, Any] = {
            "layers": self.n_layers,
            "codebook_sizes": list(self.codebook_sizes),
            "token_templates": ["{code}".join(parts) for parts in _PARTS[: self.n_layers]],
            "begin_token": BEGIN,
            "end_token": END,
            "collision": self.collision,
        }
        if self.first_id is not None:
            value |= {
                "first_id": self.first_id,
                "last_id": self.end_id,
                "layer_id_ranges": [list(pair) for pair in self.layer_ranges],
                "begin_id": self.begin_id,
                "end_id": self.end_id,
            }
        return value

    def save(self, folder: str | Path) -> None:
        write_json(Path(folder) / SID_SPEC, self.as_dict())

    @staticmethod
    def load(path: str | Path) -> SidSpec:
        """Read ``sid_spec.json`` (a file, or the folder that holds it); raises `InputError` where it is not one."""
        path = Path(path)
        path = path / SID_SPEC if path.is_dir() else path
        value = read_json(path)
        try:
            spec = SidSpec(tuple(value["codebook_sizes"]), value.get("first_id"), value.get("collision", "none"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                path, f"is not a SID specification ({error})", "give the sid_spec.json of a tokenizer"
            ) from None
        if spec.as_dict() | value != value | spec.as_dict() or value.get("begin_token", BEGIN) != BEGIN:
            raise InputError(path, "names other tokens or ids than its codebook sizes imply", "make it again")
        return spec

    @staticmethod
    def of_folder(folder: Path) -> SidSpec:
        """The specification of the data in a folder: the release's, where the folder has none."""
        return SidSpec.load(folder / SID_SPEC) if (folder / SID_SPEC).exists() else RELEASE_SPEC

    def same_codebooks(self, other: SidSpec) -> bool:
        """Whether two specs have the same codebook sizes (their ids may differ)."""
        return self.codebook_sizes == other.codebook_sizes


# The published release's SIDs; data without a sid_spec.json is taken to be of this form.
RELEASE_SPEC = SidSpec((8192, 8192, 8192))
