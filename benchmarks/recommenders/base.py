"""What every recommender learns from and gives, and the training loop of those with parameters."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.backends.base import device_of
from benchmarks.metrics import ndcg_at_k
from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.run import get_logger

if TYPE_CHECKING:
    import torch

Sequences = list[tuple[list[int], list[int]]]
VALIDATION_SHARE, VALIDATION_MOST = 0.1, 500


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the recommenders that are trained.

    ``max_items`` is how much of a history they see; ``negatives`` how many random items a softmax over the ids has
    beside the batch's targets (a catalogue that is no larger is taken whole). With ``exclude_seen`` validation leaves
    out the items of the history. Those of SASRec were chosen on validation users of Amazon Beauty.
    """

    epochs: int = 60
    patience: int = 5
    batch_size: int = 64
    lr: float = 1e-3
    dim: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5
    max_items: int = 50
    negatives: int = 2048
    tiger_dropout: float = 0.2
    tiger_dim: int = 128
    tiger_layers: int = 4
    tiger_items: int = 20
    num_beams: int = 32
    exclude_seen: bool = False
    seed: int = 0
    device: str = "auto"

    @property
    def place(self) -> torch.device:
        """Where the nets are trained and asked; raises `InputError` for a device that is not there."""
        return device_of(self.device)


class Training:
    """The training users' (history, targets), oldest first, and the catalogue.

    ``users`` says whose each is (default: another's each): of one user's sequences those that are the beginning of a
    longer one are left out of `whole`. ``validation`` has the (history, targets) by which a training is stopped
    (default: none of their own, see `split`).
    """

    def __init__(
        self,
        sequences: Sequences,
        index: ItemIndex | None = None,
        users: Sequence[Any] | None = None,
        validation: Sequences | None = None,
    ) -> None:
        self.sequences, self.index, self.validation = sequences, index, validation
        self.users = list(range(len(sequences))) if users is None else list(users)

    def whole(self) -> list[list[int]]:
        """Every user's items in order: history and targets."""
        by_user: dict[Any, list[list[int]]] = {}
        for user, (history, targets) in zip(self.users, self.sequences, strict=True):
            by_user.setdefault(user, []).append([*history, *targets])
        found: list[list[int]] = []
        for rows in by_user.values():
            rows = sorted({tuple(row) for row in rows}, key=lambda row: (-len(row), row))
            kept: list[list[int]] = []
            for row in rows:
                if not any(longer[: len(row)] == list(row) for longer in kept):
                    kept.append(list(row))
            found += kept
        return found

    def split(self, seed: int) -> tuple[Training, Sequences]:
        """(training, validation): all of it where it has validation sequences; else a tenth of the users, at most 500,
        are held out.
        """
        if self.validation is not None:
            return self, self.validation
        names = list(dict.fromkeys(self.users))
        n = min(VALIDATION_MOST, int(len(names) * VALIDATION_SHARE))
        held = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[:n]}
        rows = list(zip(self.users, self.sequences, strict=True))
        kept = [(user, s) for user, s in rows if user not in held]
        rest = Training([s for _, s in kept], self.index, [user for user, _ in kept])
        return rest, [s for user, s in rows if user in held][:VALIDATION_MOST]

    def target_counts(self) -> Counter[int]:
        """How often each item is a target."""
        return Counter(pid for _, targets in self.sequences for pid in targets)

    def items(self) -> list[int]:
        """Every item that occurs, sorted."""
        return sorted({pid for history, targets in self.sequences for pid in (*history, *targets)})


class Recommender(Protocol):
    """Ranks items for histories."""

    def rank(self, histories: Sequence[list[int]], n: int, skip: Sequence[Collection[int]]) -> list[list[int]]:
        """The best ``n`` items for every history (oldest first), best first, without those of its ``skip``."""


def first_unskipped(order: Iterator[int] | Sequence[int], n: int, skip: Collection[int]) -> list[int]:
    """The first ``n`` items of ``order`` that are not in ``skip``."""
    found: list[int] = []
    for pid in order:
        if pid not in skip:
            found.append(pid)
            if len(found) == n:
                break
    return found


def train_epochs(
    net: torch.nn.Module,
    batches: Callable[[np.random.Generator], Iterator[Any]],
    loss_of: Callable[[Any], torch.Tensor],
    validate: Callable[[], float],
    options: Options,
    label: str,
) -> None:
    """Train until ``validate`` (more is better) has not risen for ``patience`` epochs; the best weights stay."""
    import torch

    rng = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=0.01, fused=True)
    best, best_state, waited, start = -1.0, copy.deepcopy(net.state_dict()), 0, time.monotonic()
    log = get_logger("baselines")
    for epoch in range(options.epochs):
        net.train()
        losses = []
        for batch in batches(rng):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            losses.append(float(loss.detach()))
        net.eval()
        if not np.isfinite(np.mean(losses)):
            raise InputError(label, f"learns nothing: its loss is {np.mean(losses)}", "a smaller --lr, more users")
        value = validate()
        log.info(
            f"{label}: epoch {epoch + 1}/{options.epochs}  loss {np.mean(losses):.4f}  "
            f"validation ndcg@10 {value:.4f}  {time.monotonic() - start:.0f} s"
        )
        if value > best:
            best, best_state, waited = value, copy.deepcopy(net.state_dict()), 0
        else:
            waited += 1
            if waited >= options.patience:
                break
    net.load_state_dict(best_state)
    net.eval()


def mean_ndcg(recommender: Recommender, validation: Sequences, exclude_seen: bool = False) -> float:
    """NDCG@10 of the validation users' targets; 0 where there is nobody."""
    if not validation:
        return 0.0
    skip = [set(history) if exclude_seen else set() for history, _ in validation]
    ranked = recommender.rank([history for history, _ in validation], 10, skip)
    return float(np.mean([ndcg_at_k(r, t, 10) for r, (_, t) in zip(ranked, validation, strict=True) if t]))
