"""Which prompts benchmark data were made with; prompts that are too long for their place lose their oldest items."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from onerec.errors import InputError
from onerec.files import PROMPTS
from onerec.render import Renderer
from onerec.run import read_json, write_json
from onerec.sid import BEGIN, END

# A SID and the separator that follows it in a list.
_SID = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "(?:[,，、;；] ?)?")


@dataclasses.dataclass(frozen=True)
class Words:
    """What the benchmark must know of the prompts that its files were made with; by itself: the release's.

    ``prompts`` names the set. ``noun`` and ``nouns`` are what a user called an item, and several; empty where nobody
    said it. ``yes`` and ``no`` are the answers of a label task.
    """

    prompts: str = "zh"
    language: str = "zh"
    noun: str = ""
    nouns: str = ""
    yes: str = "是"
    no: str = "否"

    @property
    def yes_no(self) -> tuple[str, str]:
        """The answers of a label task, that of label 1 first."""
        return self.yes, self.no

    def save(self, folder: Path) -> Path:
        """Write ``prompts.json`` into benchmark data."""
        write_json(folder / PROMPTS, dataclasses.asdict(self))
        return folder / PROMPTS

    @staticmethod
    def of_folder(folder: Path) -> Words:
        """What ``prompts.json`` of benchmark data says; the release's words where there is none."""
        path = folder / PROMPTS
        if not path.exists():
            return Words()
        value, names = read_json(path), {field.name for field in dataclasses.fields(Words)}
        whole = isinstance(value, dict) and value.keys() == names
        if not (whole and all(isinstance(text, str) for text in value.values()) and value["yes"] and value["no"]):
            raise InputError(path, "does not say which prompts the data have", f"texts: {', '.join(sorted(names))}")
        return Words(**value)


def shorten(
    text: str, ids: list[int], limit: int, encode: Callable[[str], list[int]], n_layers: int, renderer: Renderer
) -> list[int]:
    """At most ``limit`` token ids of the prompt ``text``, whose own are ``ids``.

    The oldest items go first (histories run from old to new); a prompt without SIDs loses the beginning of its first
    user turn. What the system and the question say stays. ``n_layers``: codes of a SID, 0 where the model has none.
    ``renderer``: the one that made ``text``.
    """
    while len(ids) > limit:
        text, removed = _SID.subn("", text, count=-(-(len(ids) - limit) // (2 + n_layers)))
        if not removed:
            break
        ids = encode(text)
    if len(ids) <= limit:
        return ids
    at = text.find(renderer.user_begin)
    head = encode(text[: at + len(renderer.user_begin)]) if at >= 0 else []
    if len(head) >= limit:
        return ids[-limit:]
    return [*head, *ids[len(head) - limit :]]
