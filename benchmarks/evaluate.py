"""Evaluate a checkpoint on RecIF-Bench: items by constrained beam search, label prediction, text, general ability.

    python evaluate.py --model_path ../pretrain/output/sft/hf --result_name sft \\
        --data_dir ../data/output/benchmark_data --output_dir results/v1.0
    python evaluate.py --model_path models/base/hf --result_name base --tasks general …    # a model without SIDs
    python evaluate.py … --prior item_transitions.parquet --validation_dir <benchmark_data>    # item prior
    python evaluate.py … --judge gemini    # item_understand and rec_reason by an LLM judge (judges/*.json)

Writes results_<name>/metrics.json, predictions_<task>.jsonl, scores_<task>.parquet and manifest.json. eval_script.sh
keeps the log.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.catalogues import COUNTS, POLICIES, BenchData
from benchmarks.evaluators import EVALUATORS
from benchmarks.evaluators.similarity import TFIDF
from benchmarks.intervals import N_BOOT
from benchmarks.journal import open_journal
from benchmarks.judge import Judge, JudgeConfig
from benchmarks.model import add_model_arguments, open_model
from benchmarks.output import Output
from benchmarks.prior import check_prior
from benchmarks.results import Metrics, aligned, label_of, result_folder
from benchmarks.tasks import GENERAL, TASKS, absent, choose_tasks, task_of
from onerec.cli import cli
from onerec.flags import BOOT, COUNT, COUNT_OR_0, COUNT_OR_ALL, NOT_NEGATIVE, SEED, ArgumentParser, integer, plain_name
from onerec.keeper import kept
from onerec.run import Manifest


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    add("--result_name", type=plain_name, required=True, help="name of the result")
    data = "benchmark_data folder of the data stage, or the release's"
    add("--data_dir", type=Path, required=True, help=data)
    add("--output_dir", type=Path, required=True, help="folder for results_<result_name>/")
    add("--data_version", default="", help="name of the data's version, noted in the result")
    thinking = {"nargs": "?", "const": "true", "help": "think before the answer; alone: true"}
    add("--enable_thinking", choices=("true", "false"), default="false", **thinking)
    add("--tasks", nargs="+", default=None, help=f"of {', '.join(TASKS)}, {GENERAL} (default: all there are)")
    add("--sample_size", type=COUNT_OR_ALL, default=-1, help="test rows a task, drawn by --seed (-1: all)")
    seed = "seed of the rows that are drawn, the resamples, --sid_to_item random and sampled thinking"
    add("--seed", type=SEED, default=0, help=seed)
    # Items.
    add("--num_beams", type=COUNT, default=32, help="beams of the item search")
    add("--sid_to_item", choices=POLICIES, default="all", help="items of a SID that names several")
    add("--item_count", choices=COUNTS, default=COUNTS[0], help="what popularity is in the release's catalogue")
    add("--exclude_seen", action="store_true", help="never recommend the items of the history")
    unconstrained = "search all combinations of codes, not only the catalogue's; those that name no item are dropped"
    add("--unconstrained", action="store_true", help=unconstrained)
    free = "rows a task with one SID more without constraint, for valid_sid"
    add("--free_sids", type=COUNT_OR_0, default=100, help=free)
    prior = "item prior of videos and ads: what data/transitions.py writes, or scores by uuid or uid"
    add("--prior", type=Path, help=f"{prior}; ranks with the model")
    add("--product_prior", type=Path, help="the same of products")
    weight = "of the prior's logarithm (default: chosen on --validation_dir)"
    add("--prior_weight", type=NOT_NEGATIVE, default=None, help=weight)
    add("--validation_dir", type=Path, help="benchmark_data of the validation targets, for the prior's weight")
    users = "validation users drawn at random, for the prior's weight (-1: all)"
    add("--validation_users", type=integer(0, also=(-1,)), default=2500, help=users)
    add("--beam_widths", type=COUNT, nargs="*", default=[], help="also measure recall at these beam widths")
    add("--beam_samples", type=COUNT, default=200, help="rows a task for --beam_widths")
    # Text.
    add("--max_thinking_tokens", type=COUNT, default=256, help="tokens of thinking at most")
    rows = "rows of item_understand and rec_reason (0: --sample_size; -1: all)"
    add("--text_sample_size", type=integer(1, also=(0, -1)), default=0, help=rows)
    longest = "no text answer longer than this, below the task's own limit (-1: that)"
    add("--max_answer_tokens", type=COUNT_OR_ALL, default=-1, help=longest)
    add("--judge", default="", help="a name of judges/*.json, or such a file; without it text is not judged")
    add("--judge_cache", type=Path, help="the judge's answers (default: <output_dir>/judge_cache)")
    add("--encoder", default=TFIDF, help="of embedding_similarity: tfidf, or an encoder's folder")
    # Everything.
    add("--bootstrap", type=BOOT, default=N_BOOT, help="resamples of the users for the intervals (0: none)")
    add_model_arguments(parser)
    return parser.parse_args(argv)


def open_judge(args: argparse.Namespace) -> Judge | None:
    """The judge of --judge, which has answered a first question; None without one."""
    if not args.judge:
        return None
    judge = Judge(JudgeConfig.load(args.judge), args.judge_cache or args.output_dir / "judge_cache")
    judge.check()
    return judge


def headline(name: str, metrics: dict[str, float]) -> str:
    """One line a task, for the log."""
    parts = [f"{key} {metrics[key]:.4f}" for key in task_of(name).log if key in metrics]
    if metrics.get("unjudged"):
        parts.append(f"not judged {metrics['unjudged']:.0f}")
    return f"{name:15s} " + "  ".join(parts)


def result_table(metrics: Metrics, intervals: dict[str, dict[str, list[float]]]) -> str:
    """The table at the end of the log: every metric of the tasks' lines with its 95 % interval."""
    rows = [("task", "metric", "value", "95 % interval", "samples")]
    for name, values in metrics.items():
        for key in (key for key in task_of(name).log if key in values):
            low, high = intervals.get(name, {}).get(key, (None, None))
            span = "–" if low is None else f"{low:.4f} to {high:.4f}"
            rows.append((name, key, f"{values[key]:.4f}", span, f"{values['samples']:.0f}"))
    return aligned(rows, 2)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    tasks = choose_tasks(args.data_dir, args.tasks)
    print("config:")
    for key, value in vars(args).items():
        print(f"  {key} = {value}")
    print(f"  tasks to run = {', '.join(tasks)}{absent(args.data_dir, args.tasks)}", flush=True)
    data = BenchData(args.data_dir, args.item_count)
    check_prior(args, [task_of(name) for name in tasks])
    for path in filter(None, (args.prior, args.product_prior)):
        data.prior(path)
    judge = open_judge(args)
    journal = open_journal(args, result_folder(args.output_dir, args.result_name), tasks)
    model = open_model(args, journal)
    manifest = Manifest("evaluate", args)
    output = Output(args, args.result_name, manifest, parts=("beams", "unjudged"))
    for name in tasks:
        start, task = time.monotonic(), task_of(name)
        evaluator = EVALUATORS[task.kind](task, data, args)
        evaluator.load(manifest)
        # Written before the judge is asked: its cache and these make a second run cheap.
        output.predictions(name, evaluator.ask(model))
        metrics = output.add(name, evaluator.score(judge))
        seconds = time.monotonic() - start
        if what := evaluator.doubtful():
            manifest.warn(f"{name}: {what}", "train longer, or see whether its loss fell")
        print(f"{headline(name, metrics)}  ({metrics['samples']:.0f} samples, {seconds:.1f} s)", flush=True)
    manifest.drop("prompt cut to the context", model.truncated)
    if judge:
        output.extra["judge"] = judge.report()
    output.save(vars(args))
    journal.finish()
    table = result_table(output.metrics, output.extra["intervals"])
    print(f"\n{model.speed_line()}\nresult {label_of(args.result_name, output.extra)}\n{table}")
    for name, reasons in output.extra["unjudged"].items():
        print(f"{name}: not judged: " + ", ".join(f"{n} ({reason})" for reason, n in reasons.items()))
    if judge:
        print(f"judge: {json.dumps(judge.report(), ensure_ascii=False)}")
    print(f"{manifest.dropped_text()}; metrics in {output.folder / 'metrics.json'}")
    print(f"prompts cut to the context: {model.truncated}")


if __name__ == "__main__":
    # vLLM's engine is a process that outlives a killed one.
    kept(cli(main))()
