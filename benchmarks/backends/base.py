"""What a backend is asked, and what the backends share.

A backend's methods take all prompts of a phase and yield finished batches, lists of (index of the prompt, value), so
that results can be kept as they come. ``done`` holds indices whose value is known: a batch is left out only when all
of it is known, so that a resumed run computes the same batches, and gets the same values, as one that was never
stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from onerec.catalog import ItemIndex
from onerec.errors import InputError
from onerec.items.item import Item
from onerec.sid import SidSpec

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Finished = Iterator[list[tuple[int, T]]]
Excluded = Sequence[Collection[tuple[int, ...]]] | None
Also = Sequence[np.ndarray] | None
Known = AbstractSet[int]
NONE: Known = frozenset()
PRECISIONS = ("auto", "bf16", "fp32")
METHODS = ("generate", "rank", "next_logprobs", "tail_logprobs")  # of a `Backend`


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: greedily at temperature 0, else from the ``top_p`` most likely at that temperature.

    The draws of a prompt depend on ``seed`` and the prompt's own tokens, not on what shares its batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def key(self, prompt: Sequence[int]) -> int:
        """128 bits that the prompt's draws come from."""
        head = f"{self.seed} 0 ".encode()  # 0: the first sample of the prompt, and the only one
        return int.from_bytes(hashlib.sha256(head + np.asarray(prompt, np.int64).tobytes()).digest()[:16], "big")


class Backend(Protocol):
    """A loaded model. ``context``: tokens of its longest sequence."""

    context: int

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stop: Collection[int],
        sampling: Sampling,
        done: Known = NONE,
    ) -> Finished[list[int]]:
        """Continuations of at most ``max_tokens`` tokens, up to and with a ``stop`` token."""

    def rank(
        self,
        prompts: Sequence[list[int]],
        index: ItemIndex,
        spec: SidSpec,
        num_beams: int,
        exclude: Excluded = None,
        normalize: str = "vocabulary",
        done: Known = NONE,
        also: Also = None,
    ) -> Finished[list[Item]]:
        """The best SIDs of the catalogue, as `onerec.items.search.find_items` has them."""

    def next_logprobs(
        self, prompts: Sequence[list[int]], tokens: Sequence[int], done: Known = NONE
    ) -> Finished[list[float]]:
        """Log-probability of each of ``tokens`` right after every prompt."""

    def tail_logprobs(self, texts: Sequence[list[int]], last: Sequence[int], done: Known = NONE) -> Finished[float]:
        """Sum of the log-probabilities of each text's ``last`` tokens (fewer than it has) given those before."""


class Stopwatch:
    """A backend's methods, with the ``seconds`` that their batches take to come."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        return (lambda *args: self._timed(value(*args))) if name in METHODS else value

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - start
            if batch is None:
                return
            yield batch


def dtype_of(precision: str, gpu: bool) -> Any:
    """torch's dtype of a precision of `PRECISIONS`; ``auto`` is bfloat16 on a GPU and float32 elsewhere."""
    import torch

    half = precision == "bf16" or (precision == "auto" and gpu)
    return torch.bfloat16 if half else torch.float32


def device_of(name: str) -> torch.device:
    """torch's device of ``--device``: ``auto`` is a GPU where there is one.

    Raises `InputError` for a device that torch does not know, and for a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= gpus):
        raise InputError("--device", f"{name} is not there", "auto, cpu, or cuda with a GPU")
    return device
