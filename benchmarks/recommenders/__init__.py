"""Recommenders without a language model, to measure one against. `RECOMMENDERS` names them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.recommenders.base import Options, Recommender, Training
from benchmarks.recommenders.counting import Cooccurrence, ItemKnn, Popularity
from benchmarks.recommenders.transitions import DecayedTransitions


def _sasrec(training: Training, options: Options) -> Recommender:
    from benchmarks.recommenders.sequential import SasRecNet, fit

    return fit(SasRecNet, training, options)


def _gru4rec(training: Training, options: Options) -> Recommender:
    from benchmarks.recommenders.sequential import Gru4RecNet, fit

    return fit(Gru4RecNet, training, options)


def _tiger(training: Training, options: Options) -> Recommender:
    from benchmarks.recommenders.tiger import fit

    return fit(training, options)


# Name to what learns it from the training sequences.
RECOMMENDERS: dict[str, Callable[[Training, Options], Recommender]] = {
    "popularity": Popularity,
    "cooccurrence": Cooccurrence,
    "itemknn": ItemKnn,
    "transitions": DecayedTransitions,
    "sasrec": _sasrec,
    "gru4rec": _gru4rec,
    "tiger": _tiger,
}
