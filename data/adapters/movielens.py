"""MovieLens 100k in the RecIF release layout, leave-one-out.

    python data/adapters/movielens.py --input ml-100k --output_dir data/raw_data

Reads RecBole's tab-separated files (ml-100k.inter, .item, .user) or the original u.data, u.item, u.user. Ratings are
ordered by time, ties (a page of films rated within one second) as they stand in the file, which is RecBole's order;
by item id the last item would be the tie's highest id, an unpopular film. Every user gives a test row (split 1), with
the last item as its target and everything before it as history, and training rows (split 0) that see nothing of the
last item: the first has the latest ten items before it as targets and what came before those as history (--windows adds
rows with earlier targets; leave_one_out.py). Masks come from ratings: longview is a rating of
3 or more, like 4 or more, follow 5, not_interested 2 or less; forward has no counterpart and is 0. Ads and products
have none either and are empty. A film that a user rated twice counts once, by the later rating, so that a test item is
never in its own history. MovieLens: Harper and Konstan, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this clone before what is installed
from data.adapters.leave_one_out import add_arguments, split_rows
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.parquet import whole_number, write_table
from onerec.run import Manifest

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
CAPTION_SCHEMA = pa.schema([("pid", pa.int64()), ("dense_caption", pa.string()), ("tags", pa.list_(pa.string()))])
N_TARGETS = 10
MIN_ITEMS = 4  # a user with fewer has next to nothing before the test item
_MASKS = {
    "longview": lambda rating: rating >= 3,
    "like": lambda rating: rating >= 4,
    "follow": lambda rating: rating >= 5,
    "forward": lambda rating: False,
    "not_interested": lambda rating: rating <= 2,
}
RATINGS = (0.5, 5.0)  # the scale's ends
Film = tuple[str, str, list[str]]  # title, year or empty, genres


class Event(NamedTuple):
    """One rating; events sort by time, then by their row in the file."""

    time: int
    row: int
    item: int
    rating: float


_YEAR = re.compile(r"\s*\((\d{4})\)")


def find(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` that is in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def text_lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    """The lines of a text file that are not blank; a byte that is not ``encoding`` becomes U+FFFD."""
    text = path.read_text(encoding=encoding, errors="replace")
    return [line for line in text.split("\n") if line.strip()]


def tab_rows(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Fields of a RecBole file in the order of ``columns``; raises `InputError` where a column is missing."""
    lines = text_lines(path)
    header = [name.partition(":")[0] for name in lines[0].split("\t")] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise InputError(path, f"has no column {missing[0]}", f"RecBole's atomic file with {', '.join(columns)}")
    places = [header.index(name) for name in columns]
    rows = (line.split("\t") for line in lines[1:])
    return ([fields[place] if place < len(fields) else "" for place in places] for fields in rows)


def parse_event(fields: Sequence[str], row: int) -> tuple[int, Event]:
    """(user, event) of a rating's fields: user, item, rating, timestamp; raises ValueError where they are not that."""
    if len(fields) < 4:
        raise ValueError("fields are missing")
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
    path = find(folder, "ml-100k.inter", "u.data")
    if path is None:
        raise InputError(folder, "holds neither ml-100k.inter nor u.data", "give the MovieLens 100k folder")
    if path.name == "u.data":
        raw: Iterator[list[str]] = (line.split("\t") for line in text_lines(path))
    else:
        raw = tab_rows(path, ("user_id", "item_id", "rating", "timestamp"))
    events: dict[int, dict[int, Event]] = {}
    bad, total = Counter[str](), 0
    for fields in raw:
        total += 1
        try:
            user, event = parse_event(fields, total)
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
    note_bad(manifest, path, bad, total, max_bad_ratio)
    return {user: sorted(seen.values()) for user, seen in sorted(events.items())}


def note_bad(manifest: Manifest, path: Path, bad: Counter[str], total: int, max_bad_ratio: float) -> None:
    """Count the bad rows of one file in the manifest; raises `InputError` where they are too many for it."""
    for reason, count in bad.items():
        manifest.drop(reason, count)
    manifest.check_bad_ratio(path, sum(bad.values()), total, max_bad_ratio)


def title_and_year(title: str, year: str = "") -> tuple[str, str]:
    """Title and year, the year taken out of the title where it stands there (``Name (1995) (V)`` too)."""
    found = _YEAR.search(title)
    if found and not re.fullmatch(r"\d{4}", year):
        return title[: found.start()], found[1]
    return title, year if re.fullmatch(r"\d{4}", year) else ""


def read_films(folder: Path, manifest: Manifest, max_bad_ratio: float) -> dict[int, Film]:
    """item to (title, year or empty, genres); raises `InputError` as `read_events`."""
    path = find(folder, "ml-100k.item", "u.item")
    if path is None:
        raise InputError(folder, "holds neither ml-100k.item nor u.item", "give the MovieLens 100k folder")
    if path.name == "u.item":
        rows = [original_film(line.split("|")) for line in text_lines(path, "latin-1")]
    else:
        columns = ("item_id", "movie_title", "release_year", "class")
        rows = [(item, title, year, genres.split()) for item, title, year, genres in tab_rows(path, columns)]
    films = {
        int(item): (*title_and_year(title, year), genres)
        for item, title, year, genres in rows
        if item.isdecimal() and len(item) < 19 and title
    }
    manifest.input(path, len(rows))
    if not films:
        raise InputError(path, "holds no film", "item id, title and genres, as MovieLens 100k has them")
    bad = Counter({"film row does not parse": len(rows) - len(films)})
    note_bad(manifest, path, bad, len(rows), max_bad_ratio)
    return films


def original_film(fields: Sequence[str]) -> tuple[str, str, str, list[str]]:
    """(item, title, year, genres) of a u.item row; the item is empty where the row is not one."""
    if len(fields) < 5 + len(TEXTS["genres"]):
        return "", "", "", []
    genres = [name for name, flag in zip(TEXTS["genres"], fields[5:], strict=False) if flag == "1"]
    return fields[0], fields[1], "", genres


def read_people(folder: Path, manifest: Manifest, max_bad_ratio: float) -> dict[int, tuple[str, str]]:
    """user to (age, occupation), where the file is there; raises `InputError` as `read_events`."""
    path = find(folder, "ml-100k.user", "u.user")
    if path is None:
        return {}
    if path.name == "u.user":
        lines = (line.split("|") for line in text_lines(path))
        rows = [(f[0], f[1], f[3]) if len(f) > 3 else ("", "", "") for f in lines]
    else:
        rows = [tuple(row) for row in tab_rows(path, ("user_id", "age", "occupation"))]
    people = {int(user): (age, job) for user, age, job in rows if user.isdecimal() and len(user) < 19}
    manifest.input(path, len(rows))
    bad = Counter({"user row does not parse": len(rows) - len(people)})
    note_bad(manifest, path, bad, len(rows), max_bad_ratio)
    return people


def caption(film: Film) -> str:
    """A film's caption from title, year and genres."""
    title, year, genres = film
    template = TEXTS["caption"] if year else TEXTS["caption_no_year"]
    return template.format(title=title, year=year, genres="、".join(genres) or "unknown")


def user_row(
    uid: int, split: int, window: int, history: list[Event], target: list[Event], films: dict, people: dict
) -> dict[str, Any]:
    """One row of the release: ``target`` follows ``history``."""
    row: dict[str, Any] = {"uid": uid, "split": split, "window": window}
    for side, events in (("hist", history), ("target", target)):
        row[f"{side}_video_pid"] = [event.item for event in events]
        for name, rule in _MASKS.items():
            row[f"{side}_video_{name}"] = [int(rule(event.rating)) for event in events]
    row["hist_longview_video_list"] = [event.item for event in history if event.rating >= 3]
    for name in ("hist_ad_pid", "target_ad_pid", "hist_goods_pid", "target_goods_pid"):
        row[name] = []
    return row | user_texts(uid, history, target, films, people)


def user_texts(uid: int, history: list[Event], target: list[Event], films: dict, people: dict) -> dict[str, Any]:
    """Profile, keywords (genres to the targets of that genre) and a templated reasoning, from the history."""
    counts = Counter(genre for event in history for genre in films[event.item][2])
    genres = [genre for genre, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]] or ["unknown"]
    recent = "、".join(f"<pid:{event.item}>" for event in [e for e in history if e.rating >= 4][-5:]) or "一些热门电影"
    names = "、".join(genres)
    age, job = people.get(uid, ("", ""))
    profile = TEXTS["profile" if age and job else "profile_short"]
    keywords: dict[str, list[int]] = {}
    for event in target:
        for genre in films[event.item][2] if event.rating >= 3 else []:
            keywords.setdefault(genre, []).append(event.item)
    first_target = target[0].item
    return {
        "inter_user_profile": profile.format(age=age, occupation=job, genres=names, recent=recent),
        "inter_keyword_to_items": json.dumps(dict(sorted(keywords.items())[:2]), ensure_ascii=False),
        "reco_gsu_caption": "\n".join(caption(films[event.item]) for event in history[-5:]),
        "reco_target_caption": caption(films[first_target]),
        "reco_cot": TEXTS["cot"].format(
            genres=names, first=genres[0], target="、".join(films[first_target][2]) or "unknown"
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
    args = parser.parse_args(argv)
    manifest = Manifest("movielens", args)
    films = read_films(args.input, manifest, args.max_bad_ratio)
    events = read_events(args.input, films, manifest, args.max_bad_ratio)
    people = read_people(args.input, manifest, args.max_bad_ratio)
    rows = []
    for uid, items in events.items():
        if len(items) < MIN_ITEMS:  # nothing wrong with such a user, so this does not go into the bad ratio
            manifest.drop(f"user with fewer than {MIN_ITEMS} ratings")
            continue
        parts = split_rows(items, args.n_targets, args.windows, bool(args.validation))
        rows += [user_row(uid, *part, films, people) for part in parts]
    users = len({row["uid"] for row in rows})
    if not rows:
        raise InputError(args.input, "leaves no user", f"users with at least {MIN_ITEMS} ratings")
    total, out, lists = sum(map(len, events.values())), args.output_dir / "onerec_data", pa.list_(pa.int64())
    fields = [
        (name, lists if isinstance(value, list) else pa.string() if isinstance(value, str) else pa.int64())
        for name, value in rows[0].items()
    ]
    write_table(out / "onerec_bench_release.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    captions = {"pid": list(films), "dense_caption": [caption(film) for film in films.values()]}
    captions["tags"] = [genres for _, _, genres in films.values()]
    write_table(
        out / "pid2caption.parquet",
        pa.table(captions, schema=CAPTION_SCHEMA),
    )
    manifest.output(out / "onerec_bench_release.parquet", len(rows))
    manifest.output(out / "pid2caption.parquet", len(films))
    manifest.write(args.output_dir)
    print(f"MovieLens: {users} users, {len(films)} films, {total:,} ratings in {out}; {manifest.dropped_text()}")


if __name__ == "__main__":
    cli(main)()
