"""Amazon reviews 2014 in the RecIF release layout, leave-one-out with a validation item.

    python data/adapters/amazon2014.py --reviews Beauty_5.json.gz --metadata meta_Beauty.json.gz --output_dir out
    python data/adapters/amazon2014.py --sequences Beauty.txt --attributes Beauty_item2attributes.json --output_dir out
    python data/adapters/amazon2014.py --sequences inter.json --output_dir data/raw_data

Either the raw 5-core reviews (JSON lines, gz or not: reviewerID, asin, overall, unixReviewTime) and the metadata
(asin, title, brand, categories; JSON or Python literals, as published), or the sequence files of CIKM2020-S3Rec (a
user a line: user id, then item ids in time order; item to attribute ids), or the same as JSON (user to item list).
From raw reviews, items and users are numbered by their sorted names (item_ids.parquet, user_ids.parquet), masks come
from stars, an item that a user reviewed twice counts once, at its first review, and ties of time go by item number.
Sequence files carry no stars, so there are no masks. McAuley et al., SIGIR 2015; the split is that of SASRec (Kang and
McAuley, ICDM 2018).
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.adapters.release import (
    add_arguments,
    caption_table,
    least_items,
    release_table,
    split_rows,
    texts_of,
    video_columns,
    write_release,
)
from data.onerec_data.wording import add_prompts
from onerec.cli import cli
from onerec.errors import InputError, reading
from onerec.flags import ArgumentParser
from onerec.parquet import whole_number
from onerec.run import Manifest, progress, read_json

TEXTS: dict[str, dict[str, str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
Event = tuple[int, float]  # item, stars (NaN where the file has none)


class Catalogue:
    """Items by number: captions, in the words of ``texts``, and tags."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts
        self.captions: dict[int, str] = {}
        self.tags: dict[int, list[str]] = {}

    def add(self, pid: int, title: str, brand: str, tags: list[str]) -> None:
        """Describe an item; what is not known is left out of its caption."""
        words = self.texts
        parts = [words["title"].format(title=title)] if title else []
        parts += [words["brand"].format(brand=brand)] if brand else []
        parts += [words["tags"].format(tags=words["join"].join(tags))] if tags else []
        self.captions[pid] = words["between"].join(parts) + words["end"] if parts else words["unknown"].format(pid=pid)
        self.tags[pid] = tags


# User to events, the catalogue, and names of users and items in the order of their numbers.
Read = tuple[dict[int, list[Event]], Catalogue, dict[str, list[str]]]


def json_lines(path: Path, manifest: Manifest, max_bad_ratio: float) -> Iterator[dict[str, Any]]:
    """Objects of a file of JSON (or Python literal) lines, gz or not; lines that are none are counted."""
    if not path.is_file():
        raise InputError(path, "no such file", "a file of JSON lines, gz or not")
    total = bad = 0
    opener = gzip.open if path.suffix == ".gz" else open
    with reading(path, "is not a whole gzip file", "download it again"), opener(path, "rb") as file:
        for line in file:
            if not line.strip():
                continue
            total += 1
            if (value := parse_line(line)) is None:
                bad += 1
            else:
                yield value
    manifest.input(path, total)
    manifest.drop("line does not parse", bad)
    manifest.check_bad_ratio(path, bad, total, max_bad_ratio)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line as an object; the published metadata are Python literals, not JSON."""
    try:
        value = orjson.loads(line)
    except ValueError:
        try:
            value = ast.literal_eval(line.decode("utf-8"))
        except (ValueError, SyntaxError, UnicodeDecodeError, MemoryError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def read_reviews(path: Path, manifest: Manifest, max_bad_ratio: float) -> dict[str, list[tuple[int, str, float]]]:
    """User to (time, item, stars) of each item's first review."""
    users: dict[str, dict[str, tuple[int, str, float]]] = {}
    total = bad = 0
    for row in progress(json_lines(path, manifest, max_bad_ratio), "reviews", unit="review"):
        total += 1
        try:
            user, item, time = str(row["reviewerID"]), str(row["asin"]), int(row["unixReviewTime"])
            stars = float(row.get("overall", math.nan))
        except (KeyError, TypeError, ValueError, OverflowError):
            bad += 1
            continue
        seen = users.setdefault(user, {})
        if item in seen:
            manifest.drop("item reviewed twice by a user: the later review")
        seen[item] = min((time, item, stars), seen.get(item, (time, item, stars)))
    manifest.drop("review without user, item or time", bad)
    manifest.check_bad_ratio(path, bad, total, max_bad_ratio)
    if not users:
        raise InputError(path, "holds no review", "reviewerID, asin, overall, unixReviewTime")
    return {user: sorted(seen.values()) for user, seen in sorted(users.items())}


def from_reviews(args: argparse.Namespace, manifest: Manifest) -> Read:
    """What the raw files hold."""
    reviews = read_reviews(args.reviews, manifest, args.max_bad_ratio)
    asins = sorted({item for events in reviews.values() for _, item, _ in events})
    number = {asin: i for i, asin in enumerate(asins, 1)}
    catalogue = Catalogue(texts_of(TEXTS, args.prompts))
    for asin in asins:
        catalogue.add(number[asin], "", "", [])
    for row in json_lines(args.metadata, manifest, args.max_bad_ratio) if args.metadata else ():
        if (pid := number.get(str(row.get("asin")))) is not None:
            paths = row.get("categories") or []
            tags = list(dict.fromkeys(str(tag) for path in paths if isinstance(path, list) for tag in path[1:]))
            catalogue.add(pid, str(row.get("title") or "").strip(), str(row.get("brand") or "").strip(), tags)
    users = {
        uid: [(number[item], stars) for _, item, stars in events] for uid, events in enumerate(reviews.values(), 1)
    }
    return users, catalogue, {"user": list(reviews), "item": asins}


def from_sequences(args: argparse.Namespace, manifest: Manifest) -> Read:
    """What the sequence files hold; numbers are the files' own."""
    users: dict[int, list[Event]] = {}
    bad = total = 0
    for user, items in read_sequences(args.sequences):
        total += 1
        try:
            uid, *pids = (whole_number(int(i) if isinstance(i, str) else i) for i in (user, *items))
        except (TypeError, ValueError):
            uid = None
        if uid is None or uid in users:
            bad += 1
        else:
            users[uid] = [(pid, math.nan) for pid in pids]
    manifest.input(args.sequences, total)
    manifest.drop("line is not a user of its own and items, all whole numbers", bad)
    manifest.check_bad_ratio(args.sequences, bad, total, args.max_bad_ratio)
    attributes = read_json(args.attributes) if args.attributes else {}
    if not isinstance(attributes, dict) or not all(isinstance(values, list) for values in attributes.values()):
        raise InputError(args.attributes, "is not a JSON object of lists", '{"item id": [attribute ids]}')
    catalogue = Catalogue(texts_of(TEXTS, args.prompts))
    pids = sorted({item for events in users.values() for item, _ in events})
    if args.attributes:
        without = sum(not attributes.get(str(pid)) for pid in pids)
        if pids and without == len(pids):
            right = f"ids of items as the sequences have them, such as {pids[0]}"
            raise InputError(args.attributes, "has no attribute of any item of the sequences", right)
        manifest.drop("item without attributes: kept, its caption says its number alone", without)
    for pid in pids:
        catalogue.add(pid, "", "", [catalogue.texts["attribute"].format(id=a) for a in attributes.get(str(pid), [])])
    return users, catalogue, {}


def read_sequences(path: Path) -> Iterator[tuple[Any, Sequence[Any]]]:
    """(user, items in time order) of a sequence file: a JSON object of lists, or a user a line."""
    if path.suffix == ".json":
        value = read_json(path)
        if not isinstance(value, dict) or not all(isinstance(items, list) for items in value.values()):
            raise InputError(path, "is not a JSON object of lists", '{"user id": [item ids in time order]}')
        yield from value.items()
        return
    if not path.is_file():
        raise InputError(path, "no such file", "a sequence file: user id, then item ids, a user a line")
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        if line.strip():
            user, *items = line.split()
            yield user, items


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--reviews", type=Path, help="raw 5-core reviews, JSON lines, gz or not")
    parser.add_argument("--metadata", type=Path, help="raw metadata, gz or not (titles, brands, categories)")
    parser.add_argument(
        "--sequences",
        type=Path,
        help="sequence file: user id, then item ids, a user a line; or JSON, user to item list",
    )
    parser.add_argument("--attributes", type=Path, help="JSON of item id to attribute ids")
    parser.add_argument("--output_dir", type=Path, required=True, help="where onerec_data/ goes")
    parser.add_max_bad_ratio()
    add_arguments(parser, n_targets=10, validation=True)
    add_prompts(parser, noun=False)
    args = parser.parse_args(argv)
    if (args.reviews is None) == (args.sequences is None):
        raise InputError("--reviews, --sequences", "are both given or both missing", "one of the two")
    manifest, validation = Manifest("amazon2014", args), bool(args.validation)
    users, catalogue, names = (from_sequences if args.reviews is None else from_reviews)(args, manifest)
    rows: list[dict[str, Any]] = []
    least, kept = least_items(validation), 0
    for uid, events in users.items():
        if len(events) < least:
            manifest.drop(f"user with fewer than {least} items")
            continue
        kept += 1
        for split, window, history, target in split_rows(events, args.n_targets, args.windows, validation):
            rows.append({"uid": uid, "split": split, "window": window} | video_columns(history, target))
    if not rows:
        raise InputError(args.reviews or args.sequences, "leaves no user", f"users with at least {least} items")
    tags = [catalogue.tags[pid] for pid in catalogue.captions]
    captions = caption_table(list(catalogue.captions), list(catalogue.captions.values()), tags)
    ids = {f"{kind}_ids": pa.table({"id": range(1, len(known) + 1), "name": known}) for kind, known in names.items()}
    tables = {"onerec_bench_release": release_table(rows), "pid2caption": captions}
    out = write_release(args.output_dir, tables | ids, manifest)
    total = sum(len(events) for events in users.values())
    counts = f"{kept:,} users, {len(catalogue.captions):,} items, {total:,} interactions"
    print(f"Amazon: {counts} in {out}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
