"""Settings that fit a catalogue, from the number of its items, users and interactions, each with its reason.

    python scripts/sizes.py --data_dir raw_data/onerec_data                    # lines <stage>.<NAME>=<value>  # reason
    python scripts/sizes.py --data_dir raw_data/onerec_data --output sizes.txt

``--data_dir`` is what an adapter wrote: onerec_bench_release.parquet and pid2caption.parquet. The lines are settings as
scripts/settings.py takes them; one of your own (`--set`) goes before them. What they rest on is a table of what was
measured (``MEASURED``, experiments/2026-11-27-sizes). Codebooks follow no rule: tokenizer.CODEBOOK_SIZE=measured tries
them on the embeddings themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import ArgumentParser
from onerec.parquet import count_rows, iter_batches, open_parquet, plain
from onerec.run import write_text

LOGS, ITEMS = "onerec_bench_release.parquet", "pid2caption.parquet"
LISTS, CAPTIONS = ("hist_video_pid", "target_video_pid"), ("dense_caption", "caption")
TRAIN, TEST, VALIDATION = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What there is of a catalogue; ``interactions`` and lengths are of the training rows, a user's first window.

    ``beyond``: how many of the interactions are of rows with more items than `FITTING`; ``repeated``: of an item that
    the row has already; ``captions``: different ones, of items.
    """

    items: int
    users: int
    interactions: int
    longest: int
    tests: int
    validation: int
    beyond: int
    repeated: int
    captions: int

    @property
    def long(self) -> bool:
        """Whether users have long histories."""
        return self.length >= LONG

    @property
    def per_item(self) -> float:
        """Interactions an item."""
        return self.interactions / self.items

    @property
    def length(self) -> float:
        """Interactions of a training user, on the average."""
        return self.interactions / self.users


@dataclasses.dataclass(frozen=True)
class Measured:
    """A data set that settings were measured on: its counts, and what trained best within its time.

    ``epochs`` of stage 2; ``width``, ``layers`` of the model; ``weight`` of co-occurrence.
    """

    name: str
    items: int
    users: int
    interactions: int
    epochs: float
    width: int
    layers: int
    dropout: float
    weight: float

    @property
    def long(self) -> bool:
        """Whether users have long histories."""
        return self.interactions / self.users >= LONG

    @property
    def per_item(self) -> float:
        """Interactions an item."""
        return self.interactions / self.items


LONG = 50  # interactions a user: MovieLens has 104, the shops have 6 and 7
# Amazon: experiments/2026-11-26-beauty-codes-and-steps, -beauty-larger-models, -amazon-three-seeds; MovieLens:
# 2026-11-25-movielens-100k, its epochs: 2026-11-28-own-catalogue-three-sets; Industrial, and the weights of it and
# MovieLens: 2026-11-27-sizes. The weights of the other two are their profiles' (of two parts, what the one is of the
# other). Interactions are those of training.
MEASURED = (
    Measured("Industrial", 3_686, 3_534, 20_094, 5, 64, 2, 0.3, 1),
    Measured("Amazon Toys", 11_924, 19_412, 128_773, 19, 64, 2, 0.1, 2),
    Measured("Amazon Beauty", 12_101, 22_363, 153_776, 19, 64, 2, 0.1, 2),
    Measured("MovieLens 100k", 1_682, 943, 98_114, 12, 128, 3, 0.1, 4),
)
MOST_ITEMS = 1_000_000  # of two layers of at most 8,192 codes, which have 67 million SIDs
# Tokens of a packed row at which every profile's steps were measured.
ROW = 2048
ITEM_TOKENS = 4  # begin, two codes, end
FITTING = 358  # items of a history that fit such a row with a prompt about them
# Tokens of an epoch of stage 2 beside the items': a row's own words, and the general text of the mix. So that the sum
# is what Beauty (852,555) and Industrial (158,937) have.
ROW_TOKENS, TEXT_TOKENS = 8.4, 49_000
PROMPT_TOKENS = 40  # of a row of SFT beside its items'
# What two cores train in about a quarter of an hour at width 64 (10,000 tokens a second and core, 2 x 4,096 codes).
MOST_STEPS = 4400
CHECKPOINTS = 8  # of a training, among which the validation users choose
MOST_USERS = 10_000  # who choose; 2,500 know ndcg@10 to 5 %, too little
MOST_TESTS = 20_000  # rows that are evaluated
# Share of the interactions up to which next to nobody takes an item again: MovieLens, Beauty and Toys have none, and
# without the history last-item co-occurrence has recall@10 0.1729 instead of 0.1177 on MovieLens
# (experiments/2026-11-28-own-catalogue-three-sets).
FEW_REPEATS = 0.01
MOST_BEYOND = 0.01  # share of the interactions in histories that a short row cannot hold
MOST_WINDOWS = 16  # training rows of a user
ROW_EPOCHS = 2  # times that SFT reads a row: more of them learn the few targets by heart
# Stage 2's steps over SFT's: 8,000 and 300 on Beauty; where histories are long a 27th was too little on MovieLens.
SFT_SHARE, SFT_SHARE_LONG = 27, 9
LEAST_SFT = 24  # steps that learn the chat's form

Line = tuple[str, object, str]


def count(folder: Path) -> Catalogue:
    """Read the counts; lists are measured, not held."""
    logs, wanted = folder / LOGS, ["uid", "split", *LISTS]
    names = open_parquet(logs, wanted).schema_arrow.names
    windows = ["window"] if "window" in names else []
    users = interactions = longest = beyond = repeated = 0
    rows = {TRAIN: 0, TEST: 0, VALIDATION: 0}
    for batch in iter_batches(logs, [*wanted, *windows]):
        split = batch.column("split")
        for number in rows:
            rows[number] += pc.sum(pc.equal(split, number)).as_py() or 0
        mask = pc.equal(split, TRAIN)
        if windows:
            mask = pc.and_(mask, pc.equal(pc.fill_null(batch.column("window"), 0), 0))
        lists = [plain(batch.column(name)).filter(pc.fill_null(mask, False)) for name in LISTS]
        lengths = [pc.fill_null(pc.list_value_length(part), 0).to_numpy(zero_copy_only=False) for part in lists]
        row = np.concatenate([np.repeat(np.arange(len(of)), of) for of in lengths])
        pid = np.concatenate([part.flatten().fill_null(-1).to_numpy(zero_copy_only=False) for part in lists])
        repeated += int(pd.DataFrame({"row": row, "pid": pid}).duplicated().sum())
        users, interactions = users + len(lists[0]), interactions + len(pid)
        both = sum(lengths)
        longest, beyond = max(longest, int(both.max(initial=0))), beyond + int(both[both > FITTING].sum())
    if not interactions:
        raise InputError(logs, "has no training row with items", "split 0 rows, a history and a target each")
    items, kept_out = count_rows(folder / ITEMS), (rows[TEST], rows[VALIDATION])
    return Catalogue(items, users, interactions, longest, *kept_out, beyond, repeated, count_captions(folder / ITEMS))


def count_captions(items: Path) -> int:
    """How many different captions the items have."""
    names = open_parquet(items).schema_arrow.names
    column = next((name for name in CAPTIONS if name in names), None)
    batches = iter_batches(items, [column]) if column else ()
    return len({text for batch in batches for text in plain(batch.column(0)).unique().to_pylist()})


def nearest(catalogue: Catalogue) -> Measured:
    """The measured data set whose users have about as long histories; of several the one of as many interactions."""

    def distance(known: Measured) -> tuple[bool, float]:
        return known.long != catalogue.long, abs(np.log(known.interactions / catalogue.interactions))

    return min(MEASURED, key=distance)


def between(x: float, points: Iterable[tuple[float, float]]) -> float:
    """The value at ``x`` on the line through measured (x, value), x by its logarithm; beyond them the nearest one's."""
    places, values = zip(*sorted(points), strict=True)
    return float(np.interp(np.log(x), np.log(places), values))


def by_interactions(catalogue: Catalogue, value: Callable[[Measured], float]) -> float:
    """What is between the measured values of catalogues with histories alike, by interactions."""
    alike = [known for known in MEASURED if known.long == catalogue.long]
    return between(catalogue.interactions, ((known.interactions, value(known)) for known in alike))


def epochs(catalogue: Catalogue) -> float:
    """Epochs of stage 2: few interactions are soon learnt by heart."""
    return round(by_interactions(catalogue, lambda known: known.epochs), 1)


def dropout(catalogue: Catalogue) -> float:
    """Dropout of both stages."""
    return round(by_interactions(catalogue, lambda known: known.dropout), 2)


def weight(catalogue: Catalogue) -> float:
    """Weight of co-occurrence beside the text: the more an item is taken, the more it says."""
    points: dict[float, float] = {known.per_item: known.weight for known in MEASURED}
    return round(between(catalogue.per_item, points.items()), 1)


def power_of_two(least: float, low: int, high: int) -> int:
    """The smallest power of two from ``least`` on, between ``low`` and ``high``."""
    return int(min(high, max(low, 2 ** np.ceil(np.log2(max(least, 1))))))


def world_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """Training rows of a user: as many as SFT has steps for."""
    read = sft_steps(catalogue, like) * row_tokens(catalogue) / prompt_tokens(catalogue)
    windows = max(1, min(MOST_WINDOWS, catalogue.longest - 1, round(read / ROW_EPOCHS)))
    why = f"with one row a user ({catalogue.length:.1f} items on the average) SFT reads each row {read:.1f} times"
    yield "WINDOWS", windows, f"{why}; with more, earlier items are targets too" if windows > 1 else why


def tokenizer_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """SIDs."""
    layers = 2 if catalogue.items <= MOST_ITEMS else 3
    yield "N_LAYERS", layers, "two are better than three where both keep the items apart (Beauty 0.0341, 0.0302)"
    yield "CODEBOOK_SIZE", "measured", f"{catalogue.items:,} items: tried on their embeddings, by what collides"
    yield "BALANCED", 1, "even use of the codes: MovieLens collides in 11.7 % instead of 28.7 %"
    yield "COLLISIONS", "reassign", "every item gets a SID of its own"
    why = f"{catalogue.per_item:.1f} interactions an item"
    if catalogue.captions < 2:
        yield "ENCODER", "none", "the items have no texts: SIDs of who takes what alone"
    else:
        why += ", beside its text"
    yield "COOCCURRENCE_WEIGHT", f"{weight(catalogue):g}", why


def data_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """RL data: users for its test file, and most of them to train on."""
    yield "TEST_SIZE", power_of_two(catalogue.users // 40, 1, 64), f"test rows of RL, of {catalogue.users:,} users"


def base_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """The model's shape."""
    why = f"as {like.name}; wider ones learn so few interactions by heart"
    head = 32 if like.width == 64 else 64
    yield "HIDDEN_SIZE", like.width, why
    yield "NUM_HIDDEN_LAYERS", like.layers, f"as {like.name}"
    yield "NUM_ATTENTION_HEADS", like.width // head, f"of {head} each"
    yield "NUM_KEY_VALUE_HEADS", like.width // head, "as many"
    yield "INTERMEDIATE_SIZE", 3 * like.width, "three times the width"
    yield "INIT", "codebook", "SIDs begin where the tokenizer put them: ndcg@10 0.0341 instead of 0.0293 on Beauty"


def stg1_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """Stage 1."""
    yield "NUM_TRAINING_STEPS", 0, "adds nothing behind INIT=codebook (Beauty 0.0344 without, 0.0341 with)"


def stg2_steps(catalogue: Catalogue, row: int) -> tuple[int, str]:
    """Steps of stage 2 at rows of ``row`` tokens, and why."""
    tokens = ITEM_TOKENS * catalogue.interactions + ROW_TOKENS * catalogue.users + TEXT_TOKENS
    many = epochs(catalogue)
    wanted, most = round(many * tokens / row), MOST_STEPS * ROW // row
    if wanted <= most:
        return wanted, f"{many:g} epochs of about {tokens:,.0f} tokens; more learn {catalogue.users:,} users by heart"
    return most, f"{many * most / wanted:.1f} epochs of about {tokens:,.0f} tokens: what two cores train in time"


def stg2_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """Stage 2."""
    row = row_tokens(catalogue)
    steps, why = stg2_steps(catalogue, row)
    share = catalogue.beyond / catalogue.interactions
    yield "MAX_LENGTH", row, f"{share:.1%} of the interactions are of histories beyond {FITTING} items"
    yield "NUM_TRAINING_STEPS", steps, why
    yield "LEARNING_RATE", "1e-2" if like.width == 64 else "3e-3", f"at width {like.width}"
    why = "by interactions: 0.3, not 0.1, helps a small shop (Industrial: ndcg@10 0.0806, 0.0703), and harms Beauty"
    yield "DROPOUT", dropout(catalogue), why
    yield "SAVE_CHECKPOINT_PER_STEP", -(-steps // CHECKPOINTS), f"{CHECKPOINTS} checkpoints to choose from"


def sft_share(catalogue: Catalogue) -> int:
    """Stage 2's steps over SFT's."""
    return SFT_SHARE_LONG if catalogue.long else SFT_SHARE


def sft_steps(catalogue: Catalogue, like: Measured) -> int:
    """Steps of SFT: a share of stage 2's, and no more than reads a user's row `ROW_EPOCHS` times."""
    row = row_tokens(catalogue)
    twice = math.ceil(ROW_EPOCHS * prompt_tokens(catalogue) / row)
    return max(LEAST_SFT, min(stg2_steps(catalogue, row)[0] // sft_share(catalogue), twice))


def sft_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """SFT."""
    steps = sft_steps(catalogue, like)
    yield "MAX_LENGTH", row_tokens(catalogue), "as stage 2"
    yield (
        "NUM_TRAINING_STEPS",
        steps,
        f"at most 1/{sft_share(catalogue)} of stage 2's, and every row at most {ROW_EPOCHS} times",
    )
    why = "on MovieLens validation ndcg@10 rose by it from 0.0974 to 0.1091, and fell to 0.0816 at 2e-3"
    yield "LEARNING_RATE", "2e-4", why
    yield "DROPOUT", dropout(catalogue), "as stage 2"
    yield "SAVE_CHECKPOINT_PER_STEP", -(-steps // 3), "three checkpoints to choose from"


def evaluate_lines(catalogue: Catalogue, like: Measured) -> Iterator[Line]:
    """Validation and test."""
    users = min(MOST_USERS, catalogue.validation)
    yield "VALIDATION_USERS", users, f"of {catalogue.validation:,} validation targets, who choose the checkpoint"
    if not users:
        yield "PRIOR", 0, "no validation target, by which the prior's weight would be chosen"
    if catalogue.tests > MOST_TESTS:
        yield "SAMPLE_SIZE", MOST_TESTS, f"of {catalogue.tests:,} test rows, drawn by seed"
    share = catalogue.repeated / catalogue.interactions
    few = share < FEW_REPEATS
    why = "items of the history are left out" if few else "items of the history may be recommended"
    yield "EXCLUDE_SEEN", int(few), f"{share:.1%} of the interactions are of an item that the user had: {why}"


def row_tokens(catalogue: Catalogue) -> int:
    """Tokens of a packed row; a longer row halves the steps of the same time, so a few users do not decide."""
    return 2 * ROW if catalogue.beyond > MOST_BEYOND * catalogue.interactions else ROW


def prompt_tokens(catalogue: Catalogue) -> float:
    """Tokens of a user's latest rows as SFT asks them: the items and about 40 of words."""
    return ITEM_TOKENS * catalogue.interactions + PROMPT_TOKENS * catalogue.users


STAGES: dict[str, Callable[[Catalogue, Measured], Iterator[Line]]] = {
    "world": world_lines,
    "tokenizer": tokenizer_lines,
    "data": data_lines,
    "base": base_lines,
    "stg1": stg1_lines,
    "stg2": stg2_lines,
    "sft": sft_lines,
    "evaluate": evaluate_lines,
}


def lines(catalogue: Catalogue) -> list[str]:
    """Every setting as ``<stage>.<NAME>=<value>  # reason``."""
    like = nearest(catalogue)
    return [
        f"{stage}.{name}={value}  # {why}" for stage, of in STAGES.items() for name, value, why in of(catalogue, like)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="onerec_data folder, as the adapters write it")
    parser.add_argument("--output", type=Path, help="file for the lines too, which are printed")
    args: argparse.Namespace = parser.parse_args(argv)
    catalogue = count(args.data_dir)
    said = f"{catalogue.items:,} items, {catalogue.users:,} training rows, {catalogue.interactions:,} interactions"
    head = f"# {said}, {catalogue.length:.1f} a row, as {nearest(catalogue).name}"
    text = "\n".join([head, *lines(catalogue)]) + "\n"
    print(text, end="")
    if args.output:
        write_text(args.output, text)


if __name__ == "__main__":
    cli(main)()
