"""The model card of a run: what it was trained on, how, and what it reached, in the form that the hub reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onerec.run import Manifest
    from pretrain.trainer import PackedTrainer

# Settings that say how a model came to be; paths and log intervals are the machine's business.
SETTINGS = (
    "learning_rate", "min_lr", "lr_scheduler_type", "num_warmup_steps", "weight_decay", "beta1", "beta2", "clip_range",
    "gradient_accumulation_steps", "seed",
)  # fmt: skip
LOSSES = ("loss", "itemic_loss", "text_loss")


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def metric_rows(what: str, line: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Rows of the metrics' table from a log line: the losses, then those of each source."""
    values = {name: line[name] for name in LOSSES} | {
        f"loss of {source}": loss for source, loss in sorted(line["loss_by_source"].items())
    }
    return [(what, line["step"], name, f"{value:.4f}") for name, value in values.items() if value is not None]


def last_line(path: Path) -> dict[str, Any] | None:
    """The last object of a log; None where there is none."""
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return json.loads(lines[-1]) if lines[-1] else None


def model_card(trainer: PackedTrainer, manifest: Manifest, model_dir: Path) -> str:
    """README.md of the final model; the same run gives the same text."""
    from pretrain.trainer import LOG, VALIDATION_LOG

    output, run = Path(trainer.args.output_dir), trainer.run
    config, data = trainer.train_dataset.config, manifest.extra["data"]
    rows = run["trained_rows"]
    metrics: list[tuple[Any, ...]] = []
    for what, name in (("training", LOG), ("validation", VALIDATION_LOG)):
        if line := last_line(output / name):
            metrics += metric_rows(what, line)
    settings = {
        "steps": run["steps"],
        "processes": run["world_size"],
        "shards": run["sharding"] or "none",
        "precision": "bfloat16" if trainer.args.bf16 else "float32",
        "tokens of a packed row": config.max_length,
        "loss on the answers alone": config.only_assistant_loss,
        "think pattern": config.add_think_pattern,
        **{name: run[name] for name in SETTINGS},
    }
    trained = f"rows {rows[0]} to {rows[1]} of embedding and head" if rows else "every parameter"
    return "\n".join(
        [
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [recommendation, onerec]\n---\n",
            f"# {output.name}\n",
            f"{trainer.accelerator.unwrap_model(trainer.model).lm.config.model_type}, begun from `{model_dir.name}`; trained: {trained}. "
            "SIDs are tokens of the vocabulary (`sid_spec.json`, where the model has them).\n",
            "## Data\n",
            f"{data['samples']:,} samples, {data['tokens']:,} tokens, {data['learnt_tokens']:,} with loss; {manifest.dropped_text()}.\n",
            table(("source", "tokens"), [(n, f"{c:,}") for n, c in sorted(data["tokens_by_source"].items())]),
            "## Training\n",
            table(("setting", "value"), list(settings.items())),
            "## Metrics\n",
            "Cross-entropy a token, of the last log line before the end.\n",
            table(("on", "step", "metric", "value"), metrics),
        ]
    )
