"""MovieLens 100k in the RecIF release layout, leave-one-out.

    python data/adapters/movielens.py --input ml-100k --output_dir data/raw_data

Reads RecBole's tab-separated files (ml-100k.inter, .item, .user) or the original u.data, u.item, u.user. Ratings are
ordered by time, ties (a page of films rated within one second) as they stand in the file, which is RecBole's order; by
item id the last item would be the tie's highest id, an unpopular film. Rows and masks are those of release.py; ads and
products are empty. A film that a user rated twice counts once, by the later rating, so that a test item is never in its
own history. MovieLens: Harper and Konstan, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.adapters.release import (
    add_arguments,
    caption_table,
    release_table,
    split_rows,
    texts_of,
    video_columns,
    write_release,
)
from data.onerec_data.wording import add_prompts
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.parquet import whole_number
from onerec.run import Manifest

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
N_TARGETS = 10
MIN_ITEMS = 4  # a user with fewer has next to nothing before the test item
RATINGS = (0.5, 5.0)  # the scale's ends
# RecBole's columns of ml-100k.<name>; the original file, its separator and encoding, and the places of the same fields.
# In u.item the genres are flags, which `read_films` reads.
FILES = {
    "inter": (("user_id", "item_id", "rating", "timestamp"), "u.data", "\t", "utf-8-sig", (0, 1, 2, 3)),
    "item": (
        ("item_id", "movie_title", "release_year", "class"),
        "u.item",
        "|",
        "latin-1",
        range(5 + len(TEXTS["genres"])),
    ),
    "user": (("user_id", "age", "occupation"), "u.user", "|", "utf-8-sig", (0, 1, 3)),
}
Film = tuple[str, str, list[str]]  # title, year or empty, genres


class Event(NamedTuple):
    """One rating; events sort by time, then by their row in the file."""

    time: int
    row: int
    item: int
    rating: float


_YEAR = re.compile(r"\s*\((\d{4})\)")


def text_lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    """The lines of a text file that are not blank; a byte that is not ``encoding`` becomes U+FFFD."""
    text = path.read_text(encoding=encoding, errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def read_fields(folder: Path, name: str, required: bool = True) -> tuple[Path, list[list[str]]] | None:
    """(path, the fields of every row) of RecBole's file or of the original one, in the order of `FILES`.

    A field that a row lacks is empty; in a row of the original that is too short all are. Raises `InputError` where a
    column is missing, or there is no such file and it is ``required``.
    """
    columns, original, separator, encoding, places = FILES[name]
    path = folder / f"ml-100k.{name}"
    if path.is_file():
        lines = [line.split("\t") for line in text_lines(path)]
        header = [title.partition(":")[0] for title in lines[0]] if lines else []
        if missing := [title for title in columns if title not in header]:
            raise InputError(path, f"has no column {missing[0]}", f"RecBole's atomic file with {', '.join(columns)}")
        places = [header.index(title) for title in columns]
        return path, [[row[place] if place < len(row) else "" for place in places] for row in lines[1:]]
    path = folder / original
    if path.is_file():
        rows = [line.split(separator) for line in text_lines(path, encoding)]
        return path, [
            [row[place] for place in places] if max(places) < len(row) else [""] * len(places) for row in rows
        ]
    if required:
        right = "give the MovieLens 100k folder"
        raise InputError(folder, f"holds neither ml-100k.{name} nor {original}", right)
    return None


def parse_event(fields: Sequence[str], row: int) -> tuple[int, Event]:
    """(user, event) of a rating's fields: user, item, rating, timestamp; raises ValueError where they are not that."""
    user, item = whole_number(int(fields[0])), whole_number(int(fields[1]))
    rating, time = float(fields[2]), float(fields[3])
    if not (RATINGS[0] <= rating <= RATINGS[1] and math.isfinite(time)):
        raise ValueError("outside the scale")
    return user, Event(int(time), row, item, rating)


def read_events(
    folder: Path, films: dict[int, Film], manifest: Manifest, max_bad_ratio: float
) -> dict[int, list[Event]]:
    """Every user's ratings of known films in time order, ties as in the file; one a film.

    Raises `InputError` where the file is missing, holds no rating, or more than ``max_bad_ratio`` of it is bad.
    """
    path, raw = read_fields(folder, "inter")
    events: dict[int, dict[int, Event]] = {}
    bad, total = Counter[str](), len(raw)
    for number, fields in enumerate(raw, 1):
        try:
            user, event = parse_event(fields, number)
        except ValueError:
            bad["rating row does not parse"] += 1
            continue
        if event.item not in films:
            bad["rating of a film without a title"] += 1
            continue
        seen = events.setdefault(user, {})
        if event.item in seen:
            bad["film rated twice by a user: the earlier rating"] += 1
        seen[event.item] = max(event, seen.get(event.item, event))
    manifest.input(path, total)
    if total == bad["rating row does not parse"]:
        raise InputError(path, "holds no rating", "user, item, rating and timestamp separated by tabs")
    for reason, count in bad.items():
        manifest.drop(reason, count)
    manifest.check_bad_ratio(path, sum(bad.values()), total, max_bad_ratio)
    return {user: sorted(seen.values()) for user, seen in sorted(events.items())}


def title_and_year(title: str, year: str = "") -> tuple[str, str]:
    """Title and year; a year in the title is moved out of it (``Name (1995) (V)`` too)."""
    found = _YEAR.search(title)
    if found and not re.fullmatch(r"\d{4}", year):
        return title[: found.start()], found[1]
    return title, year if re.fullmatch(r"\d{4}", year) else ""


def read_films(folder: Path, manifest: Manifest, max_bad_ratio: float) -> dict[int, Film]:
    """item to (title, year or empty, genres); raises `InputError` as `read_events`."""
    path, rows = read_fields(folder, "item")
    if path.name == "u.item":
        known = TEXTS["genres"]
        flags = ((row, [name for name, flag in zip(known, row[5:], strict=True) if flag == "1"]) for row in rows)
        rows = [(row[0], row[1], "", genres) for row, genres in flags]
    else:
        rows = [(item, title, year, genres.split()) for item, title, year, genres in rows]
    films = {
        int(item): (*title_and_year(title, year), genres)
        for item, title, year, genres in rows
        if item.isdecimal() and len(item) < 19 and title
    }
    manifest.input(path, len(rows))
    if not films:
        raise InputError(path, "holds no film", "item id, title and genres, as MovieLens 100k has them")
    manifest.drop("film row does not parse", len(rows) - len(films))
    manifest.check_bad_ratio(path, len(rows) - len(films), len(rows), max_bad_ratio)
    return films


def read_people(folder: Path, manifest: Manifest, max_bad_ratio: float) -> dict[int, tuple[str, str]]:
    """user to (age, occupation), where the file is there; raises `InputError` as `read_events`."""
    if (found := read_fields(folder, "user", required=False)) is None:
        return {}
    path, rows = found
    people = {int(user): (age, job) for user, age, job in rows if user.isdecimal() and len(user) < 19}
    manifest.input(path, len(rows))
    manifest.drop("user row does not parse", len(rows) - len(people))
    manifest.check_bad_ratio(path, len(rows) - len(people), len(rows), max_bad_ratio)
    return people


def caption(film: Film, words: Mapping[str, str]) -> str:
    """A film's caption from title, year and genres, in an adapter's ``words``."""
    title, year, genres = film
    template = words["caption"] if year else words["caption_no_year"]
    return template.format(title=title, year=year, genres=words["join"].join(genres) or "unknown")


def user_row(
    uid: int,
    split: int,
    window: int,
    history: list[Event],
    target: list[Event],
    films: dict,
    people: dict,
    words: Mapping[str, str],
) -> dict[str, Any]:
    """One row of the release: ``target`` follows ``history``."""
    pairs = ([(event.item, event.rating) for event in events] for events in (history, target))
    row: dict[str, Any] = {"uid": uid, "split": split, "window": window} | video_columns(*pairs)
    row["hist_longview_video_list"] = [event.item for event in history if event.rating >= 3]
    for name in ("hist_ad_pid", "target_ad_pid", "hist_goods_pid", "target_goods_pid"):
        row[name] = []
    return row | user_texts(uid, history, target, films, people, words)


def user_texts(
    uid: int, history: list[Event], target: list[Event], films: dict, people: dict, words: Mapping[str, str]
) -> dict[str, Any]:
    """Profile, keywords (genres to the targets of that genre) and a templated reasoning, from the history."""
    counts = Counter(genre for event in history for genre in films[event.item][2])
    genres = [genre for genre, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]] or ["unknown"]
    join, liked = words["join"], [event.item for event in history if event.rating >= 4][-5:]
    recent = join.join(f"<pid:{item}>" for item in liked) or words["no_recent"]
    names = join.join(genres)
    age, job = people.get(uid, ("", ""))
    profile = words["profile" if age and job else "profile_short"]
    keywords: dict[str, list[int]] = {}
    for event in target:
        for genre in films[event.item][2] if event.rating >= 3 else []:
            keywords.setdefault(genre, []).append(event.item)
    first_target = target[0].item
    return {
        "inter_user_profile": profile.format(age=age, occupation=job, genres=names, recent=recent),
        "inter_keyword_to_items": json.dumps(dict(sorted(keywords.items())[:2]), ensure_ascii=False),
        "reco_gsu_caption": "\n".join(caption(films[event.item], words) for event in history[-5:]),
        "reco_target_caption": caption(films[first_target], words),
        "reco_cot": words["cot"].format(
            genres=names, first=genres[0], target=join.join(films[first_target][2]) or "unknown"
        ),
        "target_pid": first_target,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--input", type=Path, required=True, help="folder of MovieLens 100k, RecBole's or the original files"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where onerec_data/ goes")
    parser.add_max_bad_ratio()
    add_arguments(parser, N_TARGETS, validation=False)
    add_prompts(parser, noun=False)
    args = parser.parse_args(argv)
    manifest, words = Manifest("movielens", args), texts_of(TEXTS, args.prompts)
    films = read_films(args.input, manifest, args.max_bad_ratio)
    events = read_events(args.input, films, manifest, args.max_bad_ratio)
    people = read_people(args.input, manifest, args.max_bad_ratio)
    rows = []
    for uid, items in events.items():
        if len(items) < MIN_ITEMS:  # nothing wrong with such a user, so this does not go into the bad ratio
            manifest.drop(f"user with fewer than {MIN_ITEMS} ratings")
            continue
        parts = split_rows(items, args.n_targets, args.windows, bool(args.validation))
        rows += [user_row(uid, *part, films, people, words) for part in parts]
    users = len({row["uid"] for row in rows})
    if not rows:
        raise InputError(args.input, "leaves no user", f"users with at least {MIN_ITEMS} ratings")
    genres = [names for _, _, names in films.values()]
    captions = caption_table(list(films), [caption(film, words) for film in films.values()], genres)
    tables = {"onerec_bench_release": release_table(rows), "pid2caption": captions}
    out, total = write_release(args.output_dir, tables, manifest), sum(map(len, events.values()))
    print(f"MovieLens: {users} users, {len(films)} films, {total:,} ratings in {out}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
