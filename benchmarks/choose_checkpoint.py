"""Which checkpoint of a training ranks best on the validation targets: the one that goes on, chosen without the test.

    python choose_checkpoint.py --run_dir models/stage2 --data_dir validation/benchmark_data --validation_users 2500

``--run_dir`` is the output of pretrain/train.py: its ``hf/`` (configuration and tokenizer) and the checkpoints
``step<N>/global_step<N>/model.safetensors`` that it kept. ``--data_dir`` holds the validation targets as benchmark
files (data/onerec_data/run.py --benchmark_split 2). Every checkpoint ranks the items for the same users, a sample by
``--seed``; the curve and the best step go to ``<run_dir>/choice.json``. ``--before`` is that file of the stage before:
where that one's best ranked better, this stage has unlearnt, which is a warning. A model is made of the best one by
pretrain/scripts/convert_checkpoint_to_hf.sh.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.backends.base import PRECISIONS
from benchmarks.catalogues import BenchData
from benchmarks.evaluators import rank
from benchmarks.model import BenchModel
from benchmarks.tasks import TASKS, fingerprint
from onerec.cli import cli
from onerec.errors import InputError
from onerec.flags import COUNT, COUNT_OR_ALL, SEED, ArgumentParser, integer
from onerec.keeper import kept
from onerec.model_folder import check_finite, loading, tensor_headers
from onerec.run import MANIFEST, Manifest, get_logger, read_json, write_json

CHOICE = "choice.json"
WEIGHTS = "model.safetensors"
METRICS = ("recall@1", "recall@10", "ndcg@10")
_STEP = re.compile(r"global_step(\d+)")
METRIC = "ndcg@10"  # what the best checkpoint has most of
UNLEARNT = 0.95  # of what the stage before had; nearer to it may be chance
log = get_logger("choose")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--run_dir", type=Path, required=True, help="output of train.py: hf/ and step<N>/")
    add("--data_dir", type=Path, required=True, help="benchmark_data folder of the validation targets")
    ranked = [name for name, task in TASKS.items() if task.kind == "rank"]
    add("--before", type=Path, help="choice.json of the stage before, for a warning where this one ranks worse")
    add("--task", choices=ranked, default="video", help="the task that decides")
    add("--validation_users", type=COUNT_OR_ALL, default=2500, help="users drawn at random (-1: all)")
    add("--seed", type=SEED, default=0, help="seed of that draw")
    add("--validation_beams", type=integer(10), default=20, help="beams of the item search, 10 for metrics at 10")
    add("--exclude_seen", action="store_true", help="never recommend the items of the history")
    add("--token_budget", type=COUNT, default=16384, help="tokens of a padded batch")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--precision", choices=PRECISIONS, default="auto", help="auto: bf16 on a GPU, fp32 elsewhere")
    return parser.parse_args(argv)


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, weights) of the checkpoints that a run kept, oldest first; raises `InputError` where there is none."""
    found = []
    for path in run_dir.glob(f"step*/global_step*/{WEIGHTS}"):
        if match := _STEP.fullmatch(path.parent.name):
            found.append((int(match[1]), path))
    if not found:
        right = "the output of train.py, its checkpoints kept and not in shards"
        raise InputError(run_dir, f"holds no step<N>/global_step<N>/{WEIGHTS}", right)
    return sorted(found)


def load_weights(model: Any, path: Path) -> None:
    """Put a checkpoint's weights into a model of transformers; raises `InputError` where they are not of its shape."""
    from safetensors.torch import load_file

    wrong = "a checkpoint of the run that wrote hf/"
    tensor_headers(path)
    with loading(path, wrong):
        missing, unexpected = model.load_state_dict(load_file(path), strict=False)
    # A tied head is not stored a second time.
    missing = [name for name in missing if name != "lm_head.weight" or not model.config.tie_word_embeddings]
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise InputError(path, f"does not fit its run's hf/ ({name} is in one of them only)", wrong)
    check_finite(path, model.named_parameters())


def best_of(curve: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The point with the most of ``metric``; the earlier one of two that are equal."""
    return max(curve, key=lambda point: (point[metric], -point["step"]))


class Validation:
    """A sample of the validation users, and how a model does on it."""

    def __init__(self, args: argparse.Namespace, model: BenchModel, manifest: Manifest) -> None:
        self.args, self.model, task = args, model, TASKS[args.task]
        data = BenchData(args.data_dir)
        self.spec = model.check_spec(data.spec, args.data_dir)
        examples = data.examples(task, -1, manifest)
        if 0 < args.validation_users < len(examples):
            drawn = np.random.default_rng(args.seed).choice(len(examples), args.validation_users, replace=False)
            examples = [examples[i] for i in np.sort(drawn)]
        self.examples, self.index = examples, data.index(task)
        self.prompts = model.prompt_ids([example.messages for example in examples], False, self.spec.n_layers + 1)
        self.seen = [rank.seen_items(e, self.index, self.spec) if args.exclude_seen else set() for e in examples]

    def __call__(self, label: str) -> dict[str, float]:
        """Mean of every metric over the sample."""
        banned = [self.index.sids_within(pids) for pids in self.seen] if self.args.exclude_seen else None
        found = self.model.rank_items(self.prompts, self.index, self.args.validation_beams, label, banned)
        rows, width = zip(self.examples, found, self.seen, strict=True), self.args.validation_beams
        lines = [rank.line(e, sids, self.index, "all", self.args.seed, skip, width) for e, sids, skip in rows]
        scores = rank.score(self.examples, lines, self.spec).columns
        return {name: float(scores[name].mean()) for name in METRICS}


def compare(choice: dict[str, Any], best: dict[str, Any], args: argparse.Namespace, manifest: Manifest) -> None:
    """Warn where the best checkpoint of the stage before ranked the same users' items clearly better."""
    before = read_json(args.before)
    if any(before.get(name) != choice[name] for name in ("data", "task", "users", "metric")):
        return
    then = best_of(before["curve"], METRIC)[METRIC]
    if best[METRIC] < UNLEARNT * then:
        values = f"{METRIC} {best[METRIC]:.4f}, and {then:.4f} before, of {choice['users']:,} validation users"
        manifest.warn(
            f"this stage unlearnt what the one before ranked ({values})", "a lower learning rate or fewer steps"
        )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    found = checkpoints(args.run_dir)
    manifest = Manifest("choose_checkpoint", args)
    options = {"device": args.device, "token_budget": args.token_budget}
    model = BenchModel(args.run_dir / "hf", precision=args.precision, **options)
    validation = Validation(args, model, manifest)
    curve: list[dict[str, Any]] = []
    for step, path in found:
        start = time.monotonic()
        load_weights(model.backend.model, path)
        values = validation(f"step {step}")
        curve.append({"step": step} | {name: round(value, 6) for name, value in values.items()})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        log.info(f"step {step}  {shown}  ({time.monotonic() - start:.0f} s)")
        manifest.input(path)
    best = best_of(curve, METRIC)
    users = len(validation.examples)
    choice = {"best": best["step"], "metric": METRIC, "task": args.task, "users": users}
    choice |= {"data": fingerprint(args.data_dir, args.task), "curve": curve}
    if args.before:
        compare(choice, best, args, manifest)
    write_json(args.run_dir / CHOICE, choice)
    manifest.output(args.run_dir / CHOICE)
    manifest.write(args.run_dir, f"choice.{MANIFEST}")
    print(
        f"best of {len(curve)} checkpoints by {METRIC} on {users:,} validation users: "
        f"step {best['step']} ({best[METRIC]:.4f}); {manifest.dropped_text()}"
    )


if __name__ == "__main__":
    # vLLM's engine is a process that outlives a killed one.
    kept(cli(main))()
