"""What a run reports of its losses: itemic and text tokens apart, and by source, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

IGNORE = -100


class LossSums:
    """Losses and learnt tokens added up since the last report.

    Args:
        sources: names of the sources. itemic_range: (first, last) itemic id; None counts every token as text.
    """

    def __init__(self, sources: Sequence[str], itemic_range: tuple[int, int] | None) -> None:
        self._sources, self._range = list(sources), itemic_range
        # itemic loss, itemic tokens, text loss, text tokens, tokens; then loss and learnt tokens of every source
        self.values = torch.zeros(5 + 2 * len(self._sources), dtype=torch.float64)

    def add(self, outputs: dict[str, torch.Tensor], inputs: dict[str, Any], source: torch.Tensor) -> None:
        """Count a row: the model's ``losses`` and ``targets`` [N], and the ``source`` int64 [1, T] of every token."""
        losses, targets = outputs["losses"].detach().double().cpu(), outputs["targets"].cpu()
        low, high = self._range or (1, 0)
        itemic = (targets >= low) & (targets <= high)
        n = int(itemic.sum())
        # The N learnt positions are those of the labels, each predicted from the one before.
        whose = source[0, 1:][inputs["labels"][0, 1:] != IGNORE].cpu()
        count = len(self._sources)
        self.values += torch.cat(
            [
                torch.tensor(
                    [float(losses[itemic].sum()), n, float(losses[~itemic].sum()), len(targets) - n, inputs["input_ids"].numel()],
                    dtype=torch.float64,
                ),
                torch.bincount(whose, weights=losses, minlength=count),
                torch.bincount(whose, minlength=count).double(),
            ]
        )  # fmt: skip

    def report(self, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda values: values) -> dict[str, Any]:
        """The means, summed over processes by ``reduce``; None where there was no such token.

        ``loss, itemic_loss, text_loss, itemic_tokens, text_tokens, all_tokens, loss_by_source``.
        """
        values = reduce(self.values).cpu().tolist()
        itemic_loss, itemic, text_loss, text, tokens = values[:5]
        losses, counts = values[5 : 5 + len(self._sources)], values[5 + len(self._sources) :]
        return {
            "loss": (itemic_loss + text_loss) / max(1, itemic + text),
            "itemic_loss": itemic_loss / itemic if itemic else None,
            "text_loss": text_loss / text if text else None,
            "itemic_tokens": int(itemic),
            "text_tokens": int(text),
            "all_tokens": int(tokens),
            "loss_by_source": {
                name: loss / n for name, loss, n in zip(self._sources, losses, counts, strict=True) if n
            },
        }

    def clear(self) -> None:
        """Begin again."""
        self.values.zero_()
