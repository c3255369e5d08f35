"""Prompts that are too long for their place lose their oldest items."""

from __future__ import annotations

import re
from collections.abc import Callable

from onerec.chat import IM_START
from onerec.sid import BEGIN, END

# A SID and the separator that follows it in a list.
_SID = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END) + "(?:[,，、;；] ?)?")
_USER = f"{IM_START}user\n"


def shorten(text: str, ids: list[int], limit: int, encode: Callable[[str], list[int]], n_layers: int) -> list[int]:
    """At most ``limit`` token ids of the prompt ``text``, whose own are ``ids``.

    The oldest items go first (histories run from old to new); a prompt without SIDs loses the beginning of its first user turn.
    What the system and the question say stays. ``n_layers``: codes of a SID, 0 where the model has none.
    """
    while len(ids) > limit:
        text, removed = _SID.subn("", text, count=-(-(len(ids) - limit) // (2 + n_layers)))
        if not removed:
            break
        ids = encode(text)
    if len(ids) <= limit:
        return ids
    at = text.find(_USER)
    head = encode(text[: at + len(_USER)]) if at >= 0 else []
    if len(head) >= limit:
        return ids[-limit:]
    return [*head, *ids[len(head) - limit :]]
