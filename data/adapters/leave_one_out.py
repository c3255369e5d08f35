"""Leave one out: a user's items in time order to training, validation and test rows of the release layout.

The last item is the test target (split 1), with ``validation`` the one before it is the validation target (split 2),
and training rows (split 0) see neither. The latest training items, at most ``n_targets``, are the first row's targets;
with ``windows`` above 1 the items before those are the next row's, and so on, so that a short log teaches every item
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from onerec.flags import COUNT, COUNT_OR_ALL, ArgumentParser, integer

T = TypeVar("T")
TRAIN, TEST, VALIDATION = 0, 1, 2


def add_arguments(parser: ArgumentParser, n_targets: int, validation: bool) -> None:
    """The flags of the split, with an adapter's defaults."""
    parser.add_argument("--n_targets", type=COUNT, default=n_targets, help="targets of a training row, at most")
    parser.add_argument(
        "--windows",
        type=COUNT_OR_ALL,
        default=1,
        help="training rows a user, at most (-1: until every item is a target)",
    )
    parser.add_argument(
        "--validation",
        type=integer(0, 1),
        default=int(validation),
        help="1: the last item but one is kept for validation (split 2)",
    )


def least_items(validation: bool) -> int:
    """Items that a user needs: a history, a training target, and what is kept out."""
    return 4 if validation else 3


def split_rows(
    items: Sequence[T], n_targets: int, windows: int, validation: bool
) -> Iterator[tuple[int, int, Sequence[T], Sequence[T]]]:
    """(split, window, history, targets) of one user's ``items``, oldest first; windows count from the latest."""
    train = items[: -2 if validation else -1]
    end, window = len(train), 0
    while end > 1 and window != windows:
        start = max(1, end - n_targets)
        yield TRAIN, window, train[:start], train[start:end]
        end, window = start, window + 1
    yield TEST, 0, items[:-1], items[-1:]
    if validation:
        yield VALIDATION, 0, items[:-2], items[-2:-1]
