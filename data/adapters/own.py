"""A catalogue of one's own in the RecIF release layout: a table of items and a table of logs, ids as they are.

    python data/adapters/own.py --items items.parquet --logs events.csv --output_dir data/raw_data
    python data/adapters/own.py --items items.csv --logs train=old.csv test=new.csv --output_dir data/raw_data
    python data/adapters/own.py … --columns item=asin text=title+features user=member    # columns of other names

Items: an id and texts (title, description, brand, category). Logs: events (user, item, time, perhaps action and query)
or histories (user, list of items, target). Parquet, JSON lines or delimited text, a file or a folder. Without a split
of its own (a column ``split``, ``train=`` and ``test=`` before files, files named train, valid and test, or
--split_time) a user's last event is the test's and the one before it validation's. Inside, users and items are numbered
in the order in which they come; item_ids.parquet and user_ids.parquet say whose a number is.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.adapters.release import TEST, add_arguments, write_release
from data.own.events import read_events
from data.own.histories import read_histories
from data.own.items import WORDS, Items, alike, item_columns, read_items
from data.own.reader import Columns, Options, Read, Reader, Source
from data.own.rows import Log, Rows, to_table, training
from data.own.tables import TableFile, check_given, parse_columns, some, table_files
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.ids import ITEM_IDS, USER_IDS, id_table
from onerec.parquet import write_batches
from onerec.run import Manifest

ROLES = (*WORDS["logs"], "text", "category")
ROWS = 20_000  # of a written batch


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--items", type=Path, required=True, help="table of items: Parquet, JSON lines or CSV, a file or a folder")
    logs = "tables of logs, events or histories, in the same forms; train=, valid= or test= before one names its split"
    add("--logs", nargs="+", required=True, metavar="[SPLIT=]PATH", help=logs)
    columns = f"columns of other names than the usual ones: role=column, of {', '.join(ROLES)}; text=a+b for several"
    add("--columns", nargs="*", default=[], metavar="ROLE=COLUMN", help=columns)
    add("--split_time", default="", help="events from this moment on are the test's (ISO, or as the log counts)")
    add("--output_dir", type=Path, required=True, help="where onerec_data/ goes")
    parser.add_max_bad_ratio()
    add_arguments(parser, n_targets=1, validation=True)
    return parser.parse_args(argv)


def sources_of(words: Sequence[str]) -> list[Source]:
    """The files of the logs with the split that their rows are of, where the words or the files' names say it."""
    found: list[Source] = []
    for word in words:
        split, sign, path = word.partition("=")
        if not sign or split not in WORDS["splits"] or Path(word).exists():
            split, path = "", word
        files = table_files(Path(path))
        splits = [WORDS["splits"][split]] * len(files) if split else named_splits(Path(path), files)
        found += zip(files, splits, strict=True)
    return found


def named_splits(folder: Path, files: Sequence[TableFile]) -> list[int | None]:
    """The splits that the names of a folder's files (or of its folders) begin with, such as train-00000-of-00001.

    None where they say no two. Raises `InputError` where some say it and others do not.
    """
    names = [file.path.relative_to(folder).parts[0] for file in files] if folder.is_dir() else [""]
    words = [re.findall("[a-z]+", name.removeprefix("split=").lower())[:1] for name in names]
    splits = [WORDS["splits"].get(word[0]) if word else None for word in words]
    said = set(splits) - {None}
    if len(said) > 1 and None in splits:
        other = files[splits.index(None)].path
        right = "names that all begin with train, valid or test; or --logs train=<path> test=<path>"
        raise InputError(other, "says no split by its name, and other files beside it do", right)
    return splits if len(said) > 1 else [None] * len(files)


def read_logs(sources: Sequence[Source], items: Items, options: Options, manifest: Manifest) -> Read:
    """The log of all files, split; raises `InputError` where it cannot be used."""
    columns = [(Columns(file, options.given), split) for file, split in sources]
    kinds = {each.histories for each, _ in columns}
    if len(kinds) > 1:
        raise InputError(options.path, "holds events and histories", "one of the two in all files")
    said = {split is not None or each.by_role["split"] is not None for each, split in columns}
    if len(said) > 1:
        raise InputError(options.path, "says of some rows alone which split they are of", "a split of all, or of none")
    reader = Reader(items, options, manifest)
    read = (read_histories if kinds.pop() else read_events)(columns, reader)
    with_tests = {user for rows in read.tests if rows.split == TEST for user in rows.user.tolist()}
    users = int((read.log.lengths > 0).sum())
    if max(users, len(with_tests)) < 2:
        raise InputError(options.path, f"holds {users} user{'s' if users != 1 else ''}", "at least two")
    if not with_tests:
        right = "users with several events, or rows of a test split"
        raise InputError(options.path, "leaves no user to test", right)
    return read


def warn_of_ids(names: pa.Array, what: str, manifest: Manifest) -> None:
    """Say how many ids differ from another only by case or by spaces; they stay apart."""
    count, example = alike(names)
    if count:
        what = f"{count:,} {what} ids differ from another only by case or by spaces ({example})"
        manifest.warn(what, "they are kept apart; write them alike where they are the same")


def repeats(log: Log) -> float:
    """The share of the events whose item the user had taken before."""
    user = np.repeat(np.arange(len(log.bounds) - 1), log.lengths)
    pairs = np.sort(user * (int(log.items.max(initial=0)) + 1) + log.items)  # np.unique hashes, which takes far longer
    return float((pairs[1:] == pairs[:-1]).sum()) / max(len(pairs), 1)


def tables(every: Sequence[Rows], manifest: Manifest) -> Iterator[pa.Table]:
    """The rows of all splits by batches, with the same columns."""
    with_kinds = any(rows.log.kinds is not None for rows in every)
    with_queries = any(rows.log.query is not None for rows in every)
    for rows in every:
        n = len(rows.log.items)
        if with_kinds and rows.log.kinds is None:
            rows.log.kinds = np.zeros(n, np.uint8)
        if with_queries and rows.log.query is None:
            rows.log.query = pa.nulls(n, pa.string())
        for start in range(0, len(rows), ROWS):
            yield to_table(rows, slice(start, start + ROWS), manifest.dropped)


def columns_of(tables: Sequence[tuple[TableFile, Mapping[str, Sequence[str | None]]]]) -> str:
    """Which column was taken for what, and which were not read; ``tables``: files, a file's columns by role."""
    roles: dict[str, dict[str, None]] = {}
    for _, by_role in tables:
        for role, names in by_role.items():
            roles.setdefault(role, {}).update(dict.fromkeys(name for name in names if name is not None))
    taken = {name for names in roles.values() for name in names}
    rest = list(dict.fromkeys(name for file, _ in tables for name in file.names if name and name not in taken))
    said = ", ".join(f"{role}={'+'.join(names)}" for role, names in roles.items() if names)
    return said + (f"; not read: {some(rest)}" if rest else "")


def say_columns(files: Sequence[TableFile], sources: Sequence[Source], given: Mapping[str, Sequence[str]]) -> None:
    """Print which columns of both tables are read as what."""
    of_items = []
    for file in files:
        item, texts, category = item_columns(file, given)
        of_items.append((file, {"item": [item], "text": texts, "category": [category]}))
    of_logs = [(file, Columns(file, given).read) for file, _ in sources]
    print(f"columns of the items: {columns_of(of_items)}")
    print(f"columns of the logs: {columns_of(of_logs)}")


def write(args: argparse.Namespace, items: Items, read: Read, manifest: Manifest) -> Path:
    """Write the release's files and the dictionaries; returns their folder."""
    every = [training(read.log, args.n_targets, args.windows, manifest.dropped), *read.tests]
    if not len(every[0]):
        raise InputError("--logs", "leaves no training row", "users with at least two training events")
    every = [rows for rows in every if len(rows)]
    out = args.output_dir / "onerec_data"
    path = out / "onerec_bench_release.parquet"
    batches = tables(every, manifest)
    first = next(batches)
    manifest.output(path, write_batches(path, first.schema, _from(first, batches)))
    ids = {ITEM_IDS: id_table(items.names), USER_IDS: id_table(read.users)}
    named = {"pid2caption": items.table()} | {name.removesuffix(".parquet"): table for name, table in ids.items()}
    return write_release(args.output_dir, named, manifest)


def _from(first: pa.Table, rest: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from rest


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    manifest = Manifest("own", args)
    given = parse_columns(args.columns, ROLES)
    files, sources = table_files(args.items), sources_of(args.logs)
    check_given(given, {str(file.path): file.names for file in [*files, *(file for file, _ in sources)]})
    items = read_items(args.items, files, given, manifest, args.max_bad_ratio)
    path = Path(args.logs[0].partition("=")[2] or args.logs[0]) if len(args.logs) == 1 else Path("--logs")
    options = Options(path, given, args.split_time, bool(args.validation), args.max_bad_ratio)
    read = read_logs(sources, items, options, manifest)
    for names, what in ((items.names, "item"), (read.users, "user")):
        warn_of_ids(names, what, manifest)
    share = repeats(read.log)
    manifest.extra["repeated_events"] = round(share, 6)
    out = write(args, items, read, manifest)
    say_columns(files, sources, given)
    rows = ", ".join(f"{len(rows):,} {name}" for rows, name in zip(read.tests, ("test", "validation"), strict=False))
    unused = len(items.names) - np.count_nonzero(np.bincount(read.log.items))
    print(f"items: {len(items.names):,}, {unused:,} of them in no event")
    print(f"own: {len(read.users):,} users, {len(read.log.items):,} events ({share:.1%} repeats), {rows} rows in {out}")
    print(manifest.dropped_text())


if __name__ == "__main__":
    cli(main)()
