"""The table of items: ids as they are, and a caption of every item's texts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data.onerec_data.tables import SEPARATORS
from data.onerec_data.text import MARK
from data.own.tables import TableFile, find_role
from data.own.values import as_text, list_in
from onerec.errors import InputError
from onerec.run import Manifest

WORDS = json.loads((Path(__file__).parent / "words.json").read_text(encoding="utf-8"))
TEXTS = ("title", "description", "brand", "category")
LONGEST = 400  # characters of one text of an item; a caption is read by the model whole


@dataclasses.dataclass(frozen=True)
class Items:
    """Items by number less one: their own ids, titles, captions and, where there is a category, tags."""

    names: pa.Array
    titles: list[str]
    captions: list[str]
    tags: list[list[str]] | None

    def table(self) -> pa.Table:
        """The release's captions, with the titles beside them."""
        columns = {
            "pid": pa.array(range(1, len(self.names) + 1), pa.int64()),
            "title": pa.array(self.titles, pa.string()),
            "dense_caption": pa.array(self.captions, pa.string()),
        }
        if self.tags is not None:
            columns["tags"] = pa.array(self.tags, pa.list_(pa.string()))
        return pa.table(columns)


def read_items(
    path: Path, files: Sequence[TableFile], given: Mapping[str, Sequence[str]], manifest: Manifest, max_bad_ratio: float
) -> Items:
    """The items of all files, an id once, in the files' order.

    Items of tables that hold ids alone are called by them. Raises `InputError` where a file has no column of ids or
    none of texts beside others, where there are fewer than two items, where none has a text in its columns of texts,
    or where too many rows have no id or one that came before.
    """
    known: dict[str, tuple[str, str, list[str]]] = {}
    total = unmarked = cut = twice = without = 0
    bad = Counter[str]()
    bare = True  # no file has a column of texts
    for file in files:
        item, texts, tags = item_columns(file, given)
        bare &= not texts
        rows = 0
        wanted = list(dict.fromkeys([item, *texts, *([tags] if tags else [])]))
        for batch in file.batches(wanted):
            columns = {name: as_text(batch.column(name), file.path, name).to_pylist() for name in wanted}
            rows += batch.num_rows
            for at, name in enumerate(columns[item]):
                if name is None:
                    without += 1
                    continue
                if name in known:
                    twice += 1
                    continue
                values = [clean(columns[column][at] or "") for column in texts]
                unmarked += any(marked for _, marked, _ in values)
                cut += any(long for _, _, long in values)
                labels = split_tags(columns[tags][at] or "") if tags else []
                title = values[0][0] if values else name
                known[name] = (title, caption(texts, [text for text, _, _ in values]), labels)
        manifest.input(file.path, rows + file.bad.total())
        total += rows + file.bad.total()
        bad += file.bad
    bad += Counter({"item: row without an id": without, "item: its id came before": twice})
    if len(known) < 2:
        what = f"holds {len(known) or 'no'} item{'s' if not known else ''}"
        if not known and without:
            raise InputError(path, f"{what}: {without:,} rows have no id", "an id a row; --columns item=<column>")
        if not known and bad:
            reason, count = bad.most_common(1)[0]
            raise InputError(path, f"{what}: {count:,} times, {reason}", "text with separators in quotation marks")
        raise InputError(path, what, "at least two, one of which can be recommended before the other")
    untold = sum(not text for _, text, _ in known.values())
    if untold == len(known) and not bare:
        right = "a title an item, --columns text=<column>, or a table of the ids alone"
        raise InputError(path, "has no text in any row of its text columns", right)
    if bare:
        manifest.warn(
            f"{path} holds ids alone", "with titles the SIDs would also say what an item is, not only who takes it"
        )
    for reason, count in bad.items():
        manifest.drop(reason, count)
    manifest.check_bad_ratio(path, bad.total(), total, max_bad_ratio)
    manifest.drop("item without a text: kept, its caption says so", untold)
    manifest.drop("item whose text held a mark of chats or items: kept without the mark", unmarked)
    manifest.drop(f"item with a text of more than {LONGEST} characters: kept, that text cut there", cut)
    titles, captions, tags = (list(column) for column in zip(*known.values(), strict=True))
    captions = [text or WORDS["unknown"] for text in captions]
    return Items(pa.array(known, pa.string()), titles, captions, tags if any(tags) else None)


def item_columns(file: TableFile, given: Mapping[str, Sequence[str]]) -> tuple[str, list[str], str | None]:
    """(Column of ids, columns of texts as `text_columns`, column of categories) of a table of items.

    Raises `InputError` where it has none of ids.
    """
    item = find_role(file.names, "item", given, WORDS["items"]["item"])
    if item is None:
        raise file.lacks("an item's id", "item", WORDS["items"]["item"])
    tags = find_role(file.names, "category", given, WORDS["items"]["category"])
    return item, text_columns(file, item, given), tags


def text_columns(file: TableFile, item: str, given: Mapping[str, Sequence[str]]) -> list[str]:
    """The columns of an item's texts, its title first; none where the file has ids alone.

    Raises `InputError` where the file has other columns and none is one of texts.
    """
    if "text" in given:
        found: list[str | None] = [name for name in given["text"] if name in file.names]
        if not found:
            raise file.lacks("an item's text", "text", given["text"])
    else:
        found = [find_role(file.names, role, given, WORDS["items"][role]) for role in TEXTS]
    chosen = [name for name in dict.fromkeys(found) if name not in (None, item)]
    if not chosen and set(file.names) != {item}:
        usual = [name for role in TEXTS for name in WORDS["items"][role][:3]]
        raise file.lacks("an item's text", "text", usual, ", or a table of the ids alone")
    return chosen


def clean(text: str) -> tuple[str, bool, bool]:
    """(A text on one line, whether a mark of chats or items was taken out, whether it was cut at `LONGEST`)."""
    if (parts := list_in(text.strip())) is not None:
        text = ", ".join(parts)
    bare = MARK.sub(" ", text)
    marked = bare != text
    bare = " ".join(bare.split())
    long = len(bare) > LONGEST
    return (bare[: LONGEST - 1] + "…" if long else bare), marked, long


def caption(columns: Sequence[str], values: Sequence[str]) -> str:
    """One text of all: the first as it is, the others behind their columns' names."""
    parts = [
        text if not at else WORDS["part"].format(name=re.sub(r"[\s_\-.]+", " ", name.partition(":")[0]), value=text)
        for at, (name, text) in enumerate(zip(columns, values, strict=True))
        if text
    ]
    return WORDS["between"].join(part.rstrip(".") for part in parts)


def split_tags(text: str) -> list[str]:
    """A category's text as tags."""
    return [tag for part in re.split(SEPARATORS, clean(text)[0]) if (tag := part.strip())]


def alike(names: pa.Array) -> tuple[int, str]:
    """(how many ids differ from another only by case or by spaces around them, two that do)."""
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(names))
    counts = pc.value_counts(plain)
    several = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(several):
        return 0, ""
    places = pc.is_in(plain, several)
    example = names.filter(pc.equal(plain, several[0])).to_pylist()[:2]
    return int(pc.sum(places).as_py()), " and ".join(map(repr, example))
