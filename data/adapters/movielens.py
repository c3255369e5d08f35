"""MovieLens 100k in the RecIF release layout, leave-one-out.

    python data/adapters/movielens.py --input ml-100k --output_dir data/raw_data

Reads RecBole's tab-separated files (ml-100k.inter, .item, .user) or the original u.data, u.item, u.user. Ratings are
ordered by time, ties by item id. Every user gives two rows with the same uid: the test row (split 1) has the last item
as its target and everything before it as history; the training row (split 0) sees nothing of the last item: its targets
are the latest ten items before it, its history what came before those. Masks come from ratings: longview is a rating of
3 or more, like 4 or more, follow 5, not_interested 2 or less; forward has no counterpart and is 0. Ads and products
have none either and are empty. MovieLens: Harper and Konstan, ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from onerec.errors import InputError, cli
from onerec.parquet import write_table
from onerec.run import Manifest

TEXTS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
N_TARGETS = 10
MIN_ITEMS = 4  # a user with fewer has no training history beside the test item and a target
_MASKS = {
    "longview": lambda rating: rating >= 3,
    "like": lambda rating: rating >= 4,
    "follow": lambda rating: rating >= 5,
    "forward": lambda rating: False,
    "not_interested": lambda rating: rating <= 2,
}
Event = tuple[int, int, float]  # timestamp, item, rating


def find(folder: Path, *names: str) -> Path | None:
    """The first of ``names`` that is in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def tab_rows(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    """Fields of a RecBole file in the order of ``columns``; raises `InputError` where a column is missing."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = [name.partition(":")[0] for name in lines[0].split("\t")] if lines else []
    if missing := [name for name in columns if name not in header]:
        raise InputError(
            path, f"has no column {missing[0]}", f"RecBole's atomic file with {', '.join(columns)}"
        )
    places = [header.index(name) for name in columns]
    for line in lines[1:]:
        fields = line.split("\t")
        yield [fields[place] if place < len(fields) else "" for place in places]


def read_events(folder: Path, manifest: Manifest) -> dict[int, list[Event]]:
    """Every user's ratings in time order."""
    path = find(folder, "ml-100k.inter", "u.data")
    if path is None:
        raise InputError(folder, "holds neither ml-100k.inter nor u.data", "give the MovieLens 100k folder")
    if path.name == "u.data":
        raw: Iterator[list[str]] = (
            line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()
        )
    else:
        raw = tab_rows(path, ("user_id", "item_id", "rating", "timestamp"))
    events: dict[int, list[Event]] = {}
    total = 0
    for fields in raw:
        total += 1
        try:
            user, item, rating, time = int(fields[0]), int(fields[1]), float(fields[2]), int(float(fields[3]))
        except (ValueError, IndexError):
            manifest.drop("rating row does not parse")
            continue
        events.setdefault(user, []).append((time, item, rating))
    manifest.input(path, total)
    if not events:
        raise InputError(path, "holds no rating", "user, item, rating and timestamp separated by tabs")
    return {user: sorted(items) for user, items in sorted(events.items())}


def read_films(folder: Path, manifest: Manifest) -> dict[int, tuple[str, str, list[str]]]:
    """item to (title, year or empty, genres)."""
    path = find(folder, "ml-100k.item", "u.item")
    if path is None:
        raise InputError(folder, "holds neither ml-100k.item nor u.item", "give the MovieLens 100k folder")
    films: dict[int, tuple[str, str, list[str]]] = {}
    if path.name == "u.item":
        for line in path.read_text(encoding="latin-1").splitlines():
            fields = line.split("|")
            if len(fields) < 5 + len(TEXTS["genres"]) or not fields[0].isdigit():
                manifest.drop("film row does not parse")
                continue
            genres = [name for name, flag in zip(TEXTS["genres"], fields[5:], strict=False) if flag == "1"]
            title, _, year = fields[1].rpartition(" (")
            films[int(fields[0])] = (title or fields[1], year.rstrip(")") if title else "", genres)
    else:
        for item, title, year, genres in tab_rows(path, ("item_id", "movie_title", "release_year", "class")):
            if not item.isdigit():
                manifest.drop("film row does not parse")
                continue
            films[int(item)] = (title, year if year.isdigit() else "", genres.split())
    manifest.input(path, len(films))
    return films


def read_people(folder: Path) -> dict[int, tuple[str, str]]:
    """user to (age, occupation), where the file is there."""
    path = find(folder, "ml-100k.user", "u.user")
    if path is None:
        return {}
    if path.name == "u.user":
        rows = (line.split("|") for line in path.read_text(encoding="utf-8").splitlines())
        return {int(f[0]): (f[1], f[3]) for f in rows if len(f) > 3 and f[0].isdigit()}
    return {
        int(u): (age, job) for u, age, job in tab_rows(path, ("user_id", "age", "occupation")) if u.isdigit()
    }


def caption(film: tuple[str, str, list[str]]) -> str:
    """A film's caption from title, year and genres."""
    title, year, genres = film
    template = TEXTS["caption"] if year else TEXTS["caption_no_year"]
    return template.format(title=title, year=year, genres="、".join(genres) or "unknown")


def user_row(
    uid: int, split: int, history: list[Event], target: list[Event], films: dict, people: dict
) -> dict[str, Any]:
    """One row of the release: ``target`` follows ``history``."""
    row: dict[str, Any] = {"uid": uid, "split": split}
    for side, events in (("hist", history), ("target", target)):
        row[f"{side}_video_pid"] = [item for _, item, _ in events]
        for name, rule in _MASKS.items():
            row[f"{side}_video_{name}"] = [int(rule(rating)) for _, _, rating in events]
    row["hist_longview_video_list"] = [item for _, item, rating in history if rating >= 3]
    for name in ("hist_ad_pid", "target_ad_pid", "hist_goods_pid", "target_goods_pid"):
        row[name] = []
    return row | user_texts(uid, history, target, films, people)


def user_texts(
    uid: int, history: list[Event], target: list[Event], films: dict, people: dict
) -> dict[str, Any]:
    """Profile, keywords (genres to the targets of that genre) and a templated reasoning, from the history."""
    counts = Counter(genre for _, item, _ in history for genre in films[item][2])
    genres = [genre for genre, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:3]] or [
        "unknown"
    ]
    recent = (
        "、".join(f"<pid:{item}>" for _, item, rating in [e for e in history if e[2] >= 4][-5:])
        or "一些热门电影"
    )
    names = "、".join(genres)
    age, job = people.get(uid, ("", ""))
    profile = TEXTS["profile" if age and job else "profile_short"]
    keywords: dict[str, list[int]] = {}
    for _, item, rating in target:
        for genre in films[item][2] if rating >= 3 else []:
            keywords.setdefault(genre, []).append(item)
    first_target = target[0][1]
    return {
        "inter_user_profile": profile.format(age=age, occupation=job, genres=names, recent=recent),
        "inter_keyword_to_items": json.dumps(dict(sorted(keywords.items())[:2]), ensure_ascii=False),
        "reco_gsu_caption": "\n".join(caption(films[item]) for _, item, _ in history[-5:]),
        "reco_target_caption": caption(films[first_target]),
        "reco_cot": TEXTS["cot"].format(
            genres=names, first=genres[0], target="、".join(films[first_target][2]) or "unknown"
        ),
        "target_pid": first_target,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", type=Path, required=True, help="folder of MovieLens 100k, RecBole's or the original files"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where onerec_data/ goes")
    parser.add_argument(
        "--max_bad_ratio", type=float, default=0.01, help="share of bad rows past which the run fails"
    )
    args = parser.parse_args(argv)
    manifest = Manifest("movielens", args)
    events, films, people = (
        read_events(args.input, manifest),
        read_films(args.input, manifest),
        read_people(args.input),
    )
    rows, total = [], sum(map(len, events.values()))
    for uid, items in events.items():
        known = [event for event in items if event[1] in films]
        manifest.drop("rating of a film without a title", len(items) - len(known))
        if len(known) < MIN_ITEMS:
            manifest.drop(f"user with fewer than {MIN_ITEMS} ratings")
            continue
        before, last = known[:-1], known[-1:]
        cut = max(1, len(before) - N_TARGETS)
        rows.append(user_row(uid, 0, before[:cut], before[cut:], films, people))
        rows.append(user_row(uid, 1, before, last, films, people))
    manifest.check_bad_ratio(args.input, sum(manifest.dropped.values()), total, args.max_bad_ratio)
    if not rows:
        raise InputError(args.input, "leaves no user", f"users with at least {MIN_ITEMS} ratings")
    out, lists = args.output_dir / "onerec_data", pa.list_(pa.int64())
    fields = [
        (name, lists if isinstance(value, list) else pa.string() if isinstance(value, str) else pa.int64())
        for name, value in rows[0].items()
    ]
    write_table(out / "onerec_bench_release.parquet", pa.Table.from_pylist(rows, schema=pa.schema(fields)))
    captions = {"pid": list(films), "dense_caption": [caption(film) for film in films.values()]}
    write_table(
        out / "pid2caption.parquet",
        pa.table(captions, schema=pa.schema([("pid", pa.int64()), ("dense_caption", pa.string())])),
    )
    manifest.output(out / "onerec_bench_release.parquet", len(rows))
    manifest.output(out / "pid2caption.parquet", len(films))
    manifest.write(args.output_dir)
    print(
        f"MovieLens: {len(rows) // 2} users, {len(films)} films, {total:,} ratings in {out}; {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    cli(main)()
