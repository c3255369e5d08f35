"""Tables as people have them: Parquet, JSON lines or delimited text, one file or a folder, as Arrow tables of text.

Which column is the item, the user, the time and so on is told by its name (`words.json`) or by a flag. A column of
ids is read as text, to the letter: ``007`` stays ``007``, and the number 7 is ``7``.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data.own.values import parsed
from onerec.errors import InputError, reading
from onerec.parquet import iter_batches, open_parquet

PARQUET, JSON = (".parquet", ".pq"), (".json", ".jsonl", ".ndjson")
DELIMITED = (".csv", ".tsv", ".txt", ".inter", ".item")  # the last two are RecBole's
RIGHT = "Parquet, CSV or JSON lines: a file, or a folder of them"
_ROWS = 1 << 17  # rows of a batch
_BLOCK = 16 << 20  # bytes of a block of delimited text
_HEAD = 1000  # lines that say whether a text is one of sequences
SHOWN = 30  # names of columns in a message
UNCLOSED = "line inside a text whose quotation mark is not closed"


class TableFile:
    """One file of a table: its columns' names, and its rows by batches. ``bad`` counts what is no row."""

    def __init__(self, path: Path) -> None:
        """Raises `InputError` where the file cannot be read, or its ending says no kind of table."""
        self.path, self.bad = path, Counter[str]()
        ending = _ending(path)
        if ending in PARQUET:
            self._open: type[_Parquet | _Json | _Delimited | _Sequences] = _Parquet
        elif ending in JSON:
            self._open = _Json
        elif ending in DELIMITED:
            self._open = _Sequences if _is_sequences(path) else _Delimited
        else:
            raise InputError(path, f"ends in {ending or 'nothing'}", RIGHT)
        self._rows = self._open(path, self.bad)
        self.names: list[str] = self._rows.names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch | pa.Table]:
        """The rows' ``columns`` as they are stored; delimited text is text."""
        yield from self._rows.batches(columns)

    def lacks(self, what: str, role: str, usual: Sequence[str], other: str = "") -> InputError:
        """The error of a file without a column of ``what``; ``usual``: names that it might have; ``other`` ways."""
        right = f"it has {some(self.names)}: --columns {role}=<one of them>{other}"
        return InputError(self.path, f"has no column of {what} (such as {', '.join(usual[:6])})", right)


def table_files(path: Path) -> list[TableFile]:
    """The files of a table: ``path`` itself, or those below a folder that are tables, sorted by path."""
    if not path.is_dir():
        if not path.is_file():
            raise InputError(path, "no such file or folder", RIGHT)
        return [TableFile(path)]
    every = PARQUET + JSON + DELIMITED
    below = (file for file in sorted(path.rglob("*")) if file.is_file())
    shown = (file for file in below if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts))
    files = [TableFile(file) for file in shown if set(map(str.lower, file.suffixes[-2:])) & set(every)]
    if not files:
        raise InputError(path, "holds no table", RIGHT)
    return files


def some(names: Sequence[str]) -> str:
    """Names for a message, the first `SHOWN` of them."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _ending(path: Path) -> str:
    """What a file's name ends in, in small letters, without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


class _Parquet:
    def __init__(self, path: Path, bad: Counter[str]) -> None:
        self.path, self.names = path, open_parquet(path).schema_arrow.names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        return iter_batches(self.path, columns, batch_size=_ROWS)


class _Delimited:
    """Text with a line of names; the separator is the one of tab, comma, semicolon and bar that the line has most."""

    def __init__(self, path: Path, bad: Counter[str]) -> None:
        self.path, self._bad = path, bad
        with reading(path, "is not a whole gzip file"), _opened(path) as file:
            line = file.readline()
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(path, "is UTF-16", "UTF-8")
        head = line.decode("utf-8-sig", errors="replace").rstrip("\r\n")
        if not head.strip():
            raise InputError(path, "is empty", "a line of column names, then a row a line")
        self._separator = max("\t,;|", key=head.count) if re.search(r"[\t,;|]", head) else ","
        # Quotation marks in text between tabs are part of it, unless the names stand in such marks.
        self._quote = False if self._separator == "\t" and not head.startswith('"') else '"'
        self.names = self._columns_of(head)
        if all(map(_is_number, re.split(r"[\t,;|\s]+", head.strip()))):
            what = f"has no line of column names (it begins with {head[:60]})"
            raise InputError(path, what, "names first, such as user_id, item_id and timestamp")

    def _columns_of(self, head: str) -> list[str]:
        options = pa.csv.ParseOptions(delimiter=self._separator, quote_char=self._quote)
        with reading(self.path, "has no line of column names", "names, then a row a line"):
            return pa.csv.read_csv(pa.BufferReader(f"{head}\n".encode()), parse_options=options).column_names

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        def count(row: Any) -> str:
            self._bad["line of another number of columns"] += 1 + (row.text or "").count("\n")
            return "skip"

        text = dict.fromkeys(columns, pa.string())
        with reading(self.path, "cannot be read as delimited text", "UTF-8, a row a line"):
            found = pa.csv.open_csv(
                pa.input_stream(str(self.path), compression="gzip" if _is_gzip(self.path) else None),
                pa.csv.ReadOptions(block_size=_BLOCK),
                pa.csv.ParseOptions(
                    delimiter=self._separator,
                    quote_char=self._quote,
                    newlines_in_values=self._quote is not False,
                    invalid_row_handler=count,
                ),
                pa.csv.ConvertOptions(
                    column_types=text, include_columns=list(columns), null_values=[""], strings_can_be_null=True
                ),
            )
            for batch in found:
                if swallowed := sum(map(self._swallowed, batch.columns)):
                    self._bad[UNCLOSED] += swallowed
                yield batch

    def _swallowed(self, values: pa.Array) -> int:
        """How many lines of a column's texts are rows by their separators: no text has many such lines."""
        lost = 0
        if len(self.names) > 1 and self._quote:
            for text in values.filter(pc.match_substring(values, "\n").fill_null(False)).to_pylist():
                lines = text.split("\n")[1:]
                rows = sum(line.count(self._separator) == len(self.names) - 1 for line in lines)
                lost += rows if rows >= 3 and 2 * rows > len(lines) else 0
        return lost


class _Sequences:
    """Text without names, a line a user: the user, then the items, the oldest first, with spaces between them."""

    def __init__(self, path: Path, bad: Counter[str]) -> None:
        self.path, self.names = path, ["user_id", "history"]

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with reading(self.path, "is not a whole gzip file"), _opened(self.path) as file:
            lines = filter(None, map(str.split, io.TextIOWrapper(file, "utf-8-sig")))
            while rows := list(itertools.islice(lines, _ROWS)):
                users, items = [words[0] for words in rows], [words[1:] for words in rows]
                table = [pa.array(users), pa.array(items, pa.list_(pa.string()))]
                yield pa.table(table, self.names).select(columns)


def _is_sequences(path: Path) -> bool:
    """Whether a file's first lines are numbers with spaces between them, several items a user, not as many in all."""
    with reading(path, "is not a whole gzip file"), _opened(path) as file:
        lines = [line.decode("utf-8-sig", errors="replace").split(" ") for line in itertools.islice(file, _HEAD)]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    sizes = {len(line) for line in words}
    return len(sizes) > 1 and max(sizes) > 2 and all(_is_number(word) for line in words for word in line)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*\d+(\.\d+)?\s*", text) is not None


class _Json:
    """JSON lines, or one document: a list of objects, or an object whose keys are the ids of objects or of texts."""

    def __init__(self, path: Path, bad: Counter[str]) -> None:
        self.path, self._bad = path, bad
        self._document = _document(path)
        names: dict[str, None] = {}
        for value in self._objects():  # all of them: a key may come late
            if not value.keys() <= names.keys():
                names.update(dict.fromkeys(value))
        self.names = list(names)
        if not self.names:
            raise InputError(path, "holds no JSON object", "an object a line")
        self._bad.clear()  # the lines are read again

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        objects = self._objects()
        while rows := list(itertools.islice(objects, _ROWS)):
            yield pa.table({name: _array([row.get(name) for row in rows]) for name in columns})

    def _objects(self) -> Iterator[dict[str, Any]]:
        if self._document is not None:
            for value in self._document:
                if isinstance(value, dict):
                    yield value
                else:
                    self._bad["value of the list is no JSON object"] += 1
            return
        with reading(self.path, "is not a whole gzip file"), _opened(self.path) as file:
            for line in file:
                if line.strip():
                    value = parsed(line)
                    if isinstance(value, dict):
                        yield value
                    else:
                        self._bad["line is no JSON object"] += 1


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _opened(path: Path) -> Any:
    return gzip.open(path, "rb") if _is_gzip(path) else open(path, "rb")


def _document(path: Path) -> list[Any] | None:
    """What the list of a file that is one JSON document holds; None where its first line is an object of its own."""
    if _ending(path) != ".json":
        return None
    with reading(path, "is not a whole gzip file"), _opened(path) as file:
        first = file.readline()
        if isinstance(value := parsed(first), dict) and (file.readline() or not _objects_of(value)):
            return None
    with reading(path, "is not JSON", "a UTF-8 JSON file"), _opened(path) as file:
        found = _objects_of(json.loads(file.read().decode("utf-8-sig"), parse_constant=lambda name: None))
    if not found:
        raise InputError(path, "is a JSON document without objects", "a list of objects, or an object a line")
    return found


def _objects_of(value: Any) -> list[Any]:
    """The objects of a document: a list of them, alone or under one key, or what stands under each item's id.

    Or columns, each an object of row numbers to values, as pandas writes a table where nothing else is said.
    """
    if isinstance(value, dict) and value:
        parts = list(value.values())
        if all(isinstance(part, dict) for part in parts):
            rows = list(map(str, range(len(parts[0]))))
            if rows and all(list(part) == rows for part in parts):
                columns = [part.values() for part in parts]
                return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
            return [{"item_id": key} | part for key, part in value.items()]
        if len(parts) == 1 and isinstance(parts[0], list):
            return _objects_of(parts[0])
        if all(isinstance(part, str) for part in parts) or all(map(_is_plain_list, parts)):
            return [{"item_id": key, "text": part} for key, part in value.items()]
    return value if isinstance(value, list) and any(isinstance(each, dict) for each in value) else []


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(isinstance(part, dict | list) for part in value)


def _array(values: list[Any]) -> pa.Array:
    """Values of JSON as a column; where they are of several types, as the text that each would be in JSON."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        shown = (v if v is None or isinstance(v, str) else orjson.dumps(v).decode() for v in values)
        return pa.array(list(shown), pa.string())


# --- which column is what


def usual(name: str) -> str:
    """A name without what differs between houses: ``item_id:token`` (RecBole's), ``Item-ID``, ``itemId`` are itemid."""
    return re.sub(r"[\s\-._]+", "", name.partition(":")[0]).lower()


def parse_columns(words: Sequence[str], roles: Sequence[str]) -> dict[str, list[str]]:
    """``item=asin`` ``text=title+brand`` by role; raises `InputError` for what is no role."""
    found: dict[str, list[str]] = {}
    for word in words:
        role, sign, names = word.partition("=")
        if not sign or not names or role not in roles:
            raise InputError("--columns", f"is {word}", f"role=column, a role of {', '.join(roles)}")
        found[role] = names.split("+") if role == "text" else [names]
    return found


def find_role(names: Sequence[str], role: str, given: Mapping[str, Sequence[str]], known: Sequence[str]) -> str | None:
    """The column of ``names`` that plays ``role``: the given one, else the first of the usual names that is there.

    A given column may be the other table's.
    """
    if found := next((name for name in names if name in given.get(role, ())), None):
        return found
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(usual(name), name)
    return next((by_name[name] for name in map(usual, known) if name in by_name), None)


def check_given(given: Mapping[str, Sequence[str]], tables: Mapping[str, Sequence[str]]) -> None:
    """Raise `InputError` where a column of ``--columns`` is in none of the ``tables`` (path to its columns)."""
    every = {name for names in tables.values() for name in names}
    for role, names in given.items():
        for name in names:
            if name not in every:
                there = "; ".join(f"{path} has {', '.join(known)}" for path, known in tables.items())
                raise InputError("--columns", f"{role}={name}: no table has this column", there)
