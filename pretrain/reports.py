"""What a training says of itself: losses by kind of token and by source, log lines, curves, the model card."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from onerec.run import Manifest, write_text
from pretrain.checkpoint import LOG, SETTINGS, TB_LOGS, VALIDATION_LOG
from pretrain.dataset import IGNORE

# Of the loss between a log's first line and its last. Which rows stand in a line moves it by about as much; the least
# of all trainings on record is 5 %, of ten steps of stage 1 in the smoke profile.
LEAST_FALL = 0.01


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
        n, tokens = int(itemic.sum()), inputs["input_ids"].numel()
        kinds = [float(losses[itemic].sum()), n, float(losses[~itemic].sum()), len(targets) - n, tokens]
        # The N learnt positions are those of the labels, each predicted from the one before.
        whose = source[0, 1:][inputs["labels"][0, 1:] != IGNORE].cpu()
        count = len(self._sources)
        by_source = torch.bincount(whose, losses, count), torch.bincount(whose, minlength=count).double()
        self.values += torch.cat([torch.tensor(kinds, dtype=torch.float64), *by_source])

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
                name: sum_ / n for name, sum_, n in zip(self._sources, losses, counts, strict=True) if n
            },
        }

    def clear(self) -> None:
        self.values.zero_()


class Curves:
    """A run's curves: lines of JSON in its folder, and TensorBoard."""

    def __init__(self, output_dir: str | Path) -> None:
        self._folder = Path(output_dir)
        self._tensorboard: Any = None

    def write(self, values: dict[str, Any], name: str, group: str) -> None:
        """One line of the log file ``name``; in the curves its numbers are named ``group/…``."""
        with open(self._folder / name, "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(self._folder / TB_LOGS)
        by_source = {f"loss_by_source/{source}": loss for source, loss in values["loss_by_source"].items()}
        flat = {key: value for key, value in values.items() if key not in ("step", "loss_by_source")} | by_source
        for key, value in flat.items():
            if value is not None:
                self._tensorboard.add_scalar(f"{group}/{key}", value, values["step"])

    def close(self) -> None:
        if self._tensorboard:
            self._tensorboard.close()
        self._tensorboard = None


def log_line(values: dict[str, Any], total: int) -> str:
    """``step 20/300  loss 2.3456  itemic 2.1000  text 3.0000  grad 1.23  lr 1.00e-03  12,345 tok/s  1:23 left``."""
    parts = [f"step {values['step']}/{total}", f"loss {values['loss']:.4f}"]
    kinds = {kind: values[f"{kind}_loss"] for kind in ("itemic", "text")}
    parts += [f"{kind} {loss:.4f}" for kind, loss in kinds.items() if loss is not None]
    if values["grad_norm"] is not None:
        parts.append(f"grad {values['grad_norm']:.2f}")
    parts += [f"lr {values['learning_rate']:.2e}", f"{values['tokens_per_second']:,.0f} tok/s"]
    if values["mfu"] is not None:
        parts.append(f"MFU {values['mfu']:.1%}")
    minutes, seconds = divmod(round(values["seconds_left"]), 60)
    return "  ".join([*parts, f"{minutes}:{seconds:02d} left"])


def trim_log(output_dir: Path, step: int) -> None:
    """Drop the lines of the logs behind ``step``: a resumed run writes them again."""
    for path in (output_dir / LOG, output_dir / VALIDATION_LOG):
        if not path.is_file():
            continue
        kept = []
        for line in path.read_text(encoding="utf-8").split("\n"):
            with contextlib.suppress(ValueError):  # the last line of a killed run may be cut
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_text(path, "".join(kept))


def loss_that_did_not_fall(lines: Sequence[dict[str, Any]]) -> str:
    """What is wrong where a log's last loss is not `LEAST_FALL` below its first; empty where it is, or of one line."""
    if len(lines) < 2 or lines[-1]["loss"] < (1 - LEAST_FALL) * lines[0]["loss"]:
        return ""
    first, last = (f"{line['loss']:.4f} at step {line['step']}" for line in (lines[0], lines[-1]))
    return f"the training loss did not fall ({first}, {last})"


def model_card(trainer: Any, manifest: Manifest, model_dir: Path) -> str:
    """README.md of the final model of a `PackedTrainer`, as the hub reads it; the same run gives the same text."""
    output, run = Path(trainer.args.output_dir), trainer.run
    config, data = trainer.train_dataset.config, manifest.extra["data"]
    rows = run["trained_rows"]
    metrics = [
        row
        for what, name in (("training", LOG), ("validation", VALIDATION_LOG))
        for row in _metrics(what, output / name)
    ]
    settings = {
        "steps": run["steps"],
        "processes": run["world_size"],
        "shards": run["sharding"] or "none",
        "precision": "bfloat16" if trainer.accelerator.unwrap_model(trainer.model).half else "float32",
        "tokens of a packed row": config.max_length,
        "loss on the answers alone": config.only_assistant_loss,
        "think pattern": config.add_think_pattern,
    } | {name: run[name] for name in SETTINGS if "dropout" not in name}
    trained = f"rows {rows[0]} to {rows[1]} of embedding and head" if rows else "every parameter"
    samples = f"{data['samples']:,} samples, {data['tokens']:,} tokens, {data['learnt_tokens']:,} with loss"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [recommendation, onerec]\n---\n",
        f"# {output.name}\n",
        f"{trainer.accelerator.unwrap_model(trainer.model).lm.config.model_type}, begun from `{model_dir.name}`; "
        f"trained: {trained}. SIDs are tokens of the vocabulary (`sid_spec.json`, where the model has them).\n",
        "## Data\n",
        f"{samples}; {manifest.dropped_text()}.\n",
        _table(("source", "tokens"), [(name, f"{n:,}") for name, n in sorted(data["tokens_by_source"].items())]),
        "## Training\n",
        _table(("setting", "value"), list(settings.items())),
        "## Metrics\n",
        "Cross-entropy a token, of the last log line before the end.\n",
        _table(("on", "step", "metric", "value"), metrics),
    ]
    return "\n".join(parts)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _metrics(what: str, log: Path) -> list[tuple[Any, ...]]:
    """Rows of the metrics' table from the last line of a log: the losses, then those of each source."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    if not lines:
        return []
    line = json.loads(lines[-1])
    values = {name: line[name] for name in ("loss", "itemic_loss", "text_loss")}
    values |= {f"loss of {source}": loss for source, loss in sorted(line["loss_by_source"].items())}
    return [(what, line["step"], name, f"{value:.4f}") for name, value in values.items() if value is not None]
