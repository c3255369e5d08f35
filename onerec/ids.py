"""Users' and items' own ids. Inside, both are whole numbers; a dictionary file beside the data says which is whose.

``item_ids.parquet`` and ``user_ids.parquet``: ``id`` int64, the number inside, and ``name`` string, the id as the logs
have it, kept to the letter. Where there is no such file the numbers are the ids.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from onerec.parquet import Kind, read_table

ITEM_IDS, USER_IDS = "item_ids.parquet", "user_ids.parquet"


def id_table(names: pa.Array) -> pa.Table:
    """The dictionary of ``names`` [n], numbered from 1 in their order."""
    return pa.table({"id": pa.array(range(1, len(names) + 1), pa.int64()), "name": names.cast(pa.string())})


class Names:
    """The own ids of items or of users, by number and back."""

    def __init__(self, path: Path) -> None:
        """``path``: a dictionary file, or one that is not there."""
        self._names: dict[int, str] = {}
        if path.is_file():
            table = read_table(path, {"id": Kind.INT, "name": Kind.TEXT}, allow_empty=True)
            self._names = dict(zip(table["id"].to_pylist(), table["name"].to_pylist(), strict=True))
        self._numbers = {name: number for number, name in self._names.items()}

    def __bool__(self) -> bool:
        return bool(self._names)

    def show(self, number: int | str | None) -> int | str | None:
        """The id that people know; the number itself where there is no dictionary, or it is not in it."""
        return self._names.get(number, number)

    def number(self, shown: int | str | None) -> int | str | None:
        """The number of an id as `show` gives it; what is not in the dictionary stays."""
        return self._numbers.get(shown, shown)
