"""Make the toy world: a catalogue, users' logs and general text in the published RecIF layout, seeded.

    python data/make_toy_world.py                         # 2,000 users into data/raw_data, a few seconds
    python data/make_toy_world.py --n_users 300 --output_dir out/raw_data --seed 1

The next item is predictable from the set of recent subtopics and the user's style, not from the last item alone; the
table at the end says what popularity, last-item co-occurrence, a heuristic on the history and an oracle reach.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from data.adapters.release import caption_table, release_table
from data.onerec_data.wording import DEFAULT, language_of
from data.toy.general_text import LANGUAGES, make_chats, make_facts, make_texts, most_facts
from data.toy.items import Items, latent_space, make_items
from data.toy.reference import print_reference
from data.toy.users import World, simulate_user
from onerec.cli import cli
from onerec.flags import SEED, ArgumentParser, Range, integer
from onerec.parquet import embedding_table, write_table
from onerec.records import write_records
from onerec.run import Manifest, progress

TEST_SHARE = 0.2


def _at_least(least: int) -> Range:
    return integer(least, 10**7)  # a world is made in memory


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    default = Path(__file__).resolve().parent / "raw_data"
    parser.add_argument("--output_dir", type=Path, default=default, help="where onerec_data/ and general_text/ go")
    parser.add_argument("--seed", type=SEED, default=0, help="seed of everything")
    parser.add_argument(
        "--n_users", type=_at_least(10), default=2000, help="users; a fifth of them is held out (split=1)"
    )
    parser.add_argument("--n_videos", type=_at_least(120), default=1200, help="videos")
    parser.add_argument("--n_ads", type=_at_least(24), default=120, help="ads; they share the videos' pid space")
    parser.add_argument("--n_goods", type=_at_least(24), default=240, help="products; a pid space of their own")
    parser.add_argument(
        "--n_facts", type=integer(4, most_facts()), default=80, help="invented capitals that the general text teaches"
    )
    only = "a set of prompts, or its file: for one that is not Chinese the general text is English alone"
    parser.add_argument("--prompts", default=DEFAULT, help=only)
    parser.add_argument("--n_texts", type=_at_least(10), default=2500, help="documents of general text")
    return parser.parse_args(argv)


def make_catalogue(args: argparse.Namespace) -> dict[str, Items]:
    """The three domains' items. Ads follow the videos in one pid space; products begin again at 1."""
    rng = np.random.default_rng([args.seed, 1])
    space = latent_space(rng)
    return {
        "video": make_items(rng, space, "video", args.n_videos, 1),
        "ad": make_items(rng, space, "ad", args.n_ads, 1 + args.n_videos),
        "goods": make_items(rng, space, "goods", args.n_goods, 1),
    }


def captions_of(parts: Sequence[Items]) -> pa.Table:
    """The captions and tags of some domains' items."""
    captions = [caption for items in parts for caption in items.caption]
    tags = [words for items in parts for words in items.tags]
    return caption_table(np.concatenate([items.pid for items in parts]), captions, tags)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    manifest = Manifest("toy_world", args)
    out, text_out = args.output_dir / "onerec_data", args.output_dir / "general_text"

    def save(path: Path, table: pa.Table) -> None:
        write_table(path, table)
        manifest.output(path, table.num_rows)

    items = make_catalogue(args)
    worlds = {domain: World(part) for domain, part in items.items()}
    test = np.random.default_rng([args.seed, 2]).permutation(args.n_users) < round(TEST_SHARE * args.n_users)
    rows, watches = [], []
    for uid in progress(range(args.n_users), "users", unit="user"):
        rng = np.random.default_rng([args.seed, 3, uid])
        row, watch = simulate_user(rng, uid + 1, int(test[uid]), worlds)
        rows.append(row)
        watches.append(watch)
    save(out / "onerec_bench_release.parquet", release_table(rows))
    save(out / "pid2caption.parquet", captions_of([items["video"], items["ad"]]))
    save(out / "product_pid2caption.parquet", captions_of([items["goods"]]))
    for name, domains in (("item_embedding", [items["video"], items["ad"]]), ("product_embedding", [items["goods"]])):
        pids, vectors = (np.concatenate([getattr(d, part) for d in domains]) for part in ("pid", "embedding"))
        save(out / f"{name}.parquet", embedding_table(pids, vectors))

    rng = np.random.default_rng([args.seed, 4])
    chinese = language_of(args.prompts) == "zh"
    languages = LANGUAGES if chinese else ("en",)
    facts = make_facts(rng, args.n_facts, languages)
    chats, questions = make_chats(rng, facts, languages)
    texts = list(make_texts(rng, facts, chats, args.n_texts + max(10, args.n_texts // 20), topics=chinese))
    for path, records in (
        (text_out / "pretrain" / "toy_text.parquet", texts[: args.n_texts]),
        (text_out / "sft" / "toy_chat.parquet", chats),
        (text_out / "heldout" / "text.parquet", texts[args.n_texts :]),
        (text_out / "heldout" / "qa.parquet", questions),
    ):
        manifest.output(path, write_records(path, records))

    print_reference(items["video"], rows, watches)
    manifest.write(args.output_dir)
    print(f"toy world: {args.n_users} users, {sum(map(len, items.values()))} items in {args.output_dir}; dropped 0")


if __name__ == "__main__":
    cli(main)()
