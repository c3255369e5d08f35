"""Evaluate a checkpoint on RecIF-Bench: recommendation by constrained beam search, label prediction, text, general ability.

    python evaluate.py --model_path ../pretrain/output/sft/hf --result_name sft --data_dir ../data/output/benchmark_data \\
        --output_dir results/v1.0
    python evaluate.py --model_path models/base/hf --result_name base --tasks general …    # a model without SIDs
    python evaluate.py … --judge gemini    # item_understand and rec_reason by an LLM judge (judges/*.json)

Writes results_<name>/metrics.json, predictions_<task>.jsonl, scores_<task>.parquet and manifest.json. eval_script.sh keeps
the log.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from benchmarks.catalogues import COUNTS, POLICIES, every_sid, load_catalogue
from benchmarks.evaluators import general, label, rank, similarity, text
from benchmarks.intervals import N_BOOT, values_and_intervals
from benchmarks.journal import open_journal
from benchmarks.judge import Judge, JudgeConfig
from benchmarks.model import add_model_arguments, open_model
from benchmarks.results import Metrics, Scores, result_folder, save_metrics
from benchmarks.tasks import (
    GENERAL,
    TASKS,
    YES_NO,
    BenchTask,
    Example,
    choose_tasks,
    fingerprint,
    load_examples,
    load_spec,
    task_of,
)
from onerec.catalog import ItemIndex
from onerec.chat import END_OF_TEXT, split_thinking
from onerec.cli import cli
from onerec.flags import BOOT, COUNT, COUNT_OR_0, COUNT_OR_ALL, SEED, ArgumentParser, integer, plain_name
from onerec.keeper import kept
from onerec.run import Manifest, write_text


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    add("--result_name", type=plain_name, required=True, help="name of the result")
    add(
        "--data_dir",
        type=Path,
        required=True,
        help="benchmark_data folder of the data stage, or the release's",
    )
    add("--output_dir", type=Path, required=True, help="folder for results_<result_name>/")
    add("--data_version", default="", help="name of the data's version, noted in the result")
    add(
        "--enable_thinking",
        choices=("true", "false"),
        nargs="?",
        const="true",
        default="false",
        help="think before the answer; alone: true",
    )
    add("--tasks", nargs="+", default=None, help=f"of {', '.join(TASKS)}, {GENERAL} (default: all there are)")
    add("--sample_size", type=COUNT_OR_ALL, default=-1, help="test rows a task, from the first (-1: all)")
    add("--seed", type=SEED, default=0, help="seed of the resamples, of thoughts and of --sid_to_item random")
    # Items.
    add("--num_beams", type=COUNT, default=32, help="beams of the item search")
    add("--sid_to_item", choices=POLICIES, default="all", help="items of a SID that names several")
    add(
        "--item_count",
        choices=COUNTS,
        default=COUNTS[0],
        help="what popularity is in the release's catalogue",
    )
    add("--exclude_seen", action="store_true", help="never recommend the items of the history")
    add(
        "--unconstrained",
        action="store_true",
        help="search all combinations of codes, not the catalogue's alone; what is no item falls out afterwards",
    )
    add(
        "--free_sids",
        type=COUNT_OR_0,
        default=100,
        help="rows a task with one SID more without constraint, for valid_sid",
    )
    add("--beam_widths", type=COUNT, nargs="*", default=[], help="also measure recall at these beam widths")
    add("--beam_samples", type=COUNT, default=200, help="rows a task for --beam_widths")
    # Text.
    add("--max_thinking_tokens", type=COUNT, default=256, help="tokens of thinking at most")
    add(
        "--text_sample_size",
        type=integer(1, also=(0, -1)),
        default=0,
        help="rows of item_understand and rec_reason (0: --sample_size; -1: all)",
    )
    add(
        "--max_answer_tokens",
        type=COUNT_OR_ALL,
        default=-1,
        help="no text answer longer than this, below the task's own limit (-1: that)",
    )
    add("--judge", default="", help="a name of judges/*.json, or such a file; without it text is not judged")
    add(
        "--judge_cache",
        type=Path,
        default=None,
        help="the judge's answers (default: <output_dir>/judge_cache)",
    )
    add("--encoder", default=similarity.TFIDF, help="of embedding_similarity: tfidf, or an encoder's folder")
    # Everything.
    add("--bootstrap", type=BOOT, default=N_BOOT, help="resamples of the users for the intervals (0: none)")
    add_model_arguments(parser)
    return parser.parse_args(argv)


@dataclasses.dataclass
class TaskResult:
    """Scores of the samples, the metrics that are read off them, and figures of the whole task."""

    scores: Scores
    metrics: Sequence[str]
    figures: dict[str, float]


class Evaluation:
    """One run over the tasks: the model, the data and what is written."""

    def __init__(self, args: argparse.Namespace, tasks: Sequence[str]) -> None:
        self.args, self.folder = args, result_folder(args.output_dir, args.result_name)
        self.thinking = args.enable_thinking == "true"
        self.judge = self._open_judge()
        self.journal = open_journal(args, self.folder, tasks)
        self.model = open_model(args, self.journal)
        self.manifest = Manifest("evaluate", args)
        self.metrics: Metrics = {}
        self.extra: dict[str, Any] = {
            "data": {"version": args.data_version, "tests": {}}, "intervals": {}, "beams": {}, "unjudged": {},
        }  # fmt: skip
        self._indexes: dict[str, ItemIndex] = {}

    def _open_judge(self) -> Judge | None:
        if not self.args.judge:
            return None
        cache = self.args.judge_cache or self.args.output_dir / "judge_cache"
        judge = Judge(JudgeConfig.load(self.args.judge), cache)
        judge.check()
        return judge

    def run_task(self, name: str) -> dict[str, float]:
        """Metrics of one task by name; its predictions, scores and intervals are kept."""
        task = task_of(name)
        run = {
            "rank": self._rank,
            "label": self._label,
            "understand": self._text,
            "reason": self._text,
            GENERAL: lambda _: self._general(),
        }[task.kind]
        result = run(task)
        self.manifest.output(result.scores.save(self.folder, name), len(result.scores.uuids))
        values, intervals = values_and_intervals(result.metrics, result.scores, self.args.bootstrap, self.args.seed)
        self.metrics[name] = values | result.figures
        self.extra["intervals"][name] = intervals
        self.extra["data"]["tests"][name] = fingerprint(self.args.data_dir, name)
        return self.metrics[name]

    def save(self) -> None:
        """Write ``metrics.json`` and the manifest."""
        self.manifest.drop("prompt cut to the context", self.model.truncated)
        if self.judge:
            self.extra["judge"] = self.judge.report()
        config = {key: str(value) for key, value in vars(self.args).items()}
        save_metrics(self.folder, self.args.result_name, self.metrics, self.manifest, config, self.extra)
        self.journal.finish()

    def index(self, task: BenchTask) -> ItemIndex:
        """The catalogue of a task; items that share a SID are ordered by popularity."""
        if task.catalogue not in self._indexes:
            spec = load_spec(self.args.data_dir)
            self._indexes[task.catalogue] = load_catalogue(
                self.args.data_dir, task.catalogue, spec, self.args.item_count
            )
        return self._indexes[task.catalogue]

    def _examples(self, task: BenchTask) -> list[Example]:
        size = self.args.sample_size
        if task.kind in ("understand", "reason") and self.args.text_sample_size:
            size = self.args.text_sample_size
        return load_examples(self.args.data_dir, task, size, self.manifest)

    def _prompts(self, name: str, conversations: Sequence[Any], room: int) -> tuple[list[list[int]], list[str]]:
        """Token ids that the answer follows, and what was thought before it (empty without thinking)."""
        if not self.thinking:
            return self.model.prompt_ids(conversations, False, room), [""] * len(conversations)
        budget = self.args.max_thinking_tokens
        prompts = self.model.prompt_ids(conversations, True, room + budget)
        whole = self.model.think(prompts, budget, f"{name}: thinking")
        thoughts = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
        decoded = self.model.tokenizer.batch_decode(thoughts, skip_special_tokens=False)
        return whole, [split_thinking(thought)[0].strip() for thought in decoded]

    def _rank(self, task: BenchTask) -> TaskResult:
        args, data = self.args, self.args.data_dir
        spec = self.model.check_spec(load_spec(data), data)
        examples = self._examples(task)
        index = self.index(task)
        prompts, thoughts = self._prompts(task.name, [e.messages for e in examples], spec.n_layers + 1)
        seen = [rank.seen_items(e, index, spec) if args.exclude_seen else set() for e in examples]
        banned = [index.sids_within(pids) for pids in seen] if args.exclude_seen else None
        searched = every_sid(spec) if args.unconstrained else index
        ranked = self.model.rank_items(prompts, searched, args.num_beams, task.name, banned)
        lines = [
            rank.line(example, hypotheses, index, args.sid_to_item, args.seed, skip, thought)
            for example, hypotheses, skip, thought in zip(examples, ranked, seen, thoughts, strict=True)
        ]
        self._save_predictions(task.name, lines)
        scores = rank.score(examples, lines, spec)
        figures = rank.coverage(lines, index.n_items) | {"samples": len(lines)}
        if args.free_sids > 0:
            begun = [[*prompt, spec.begin_id] for prompt in prompts[: args.free_sids]]
            free = self.model.generate(begun, spec.n_layers, [spec.end_id], f"{task.name}: free SIDs")
            figures["valid_sid"] = rank.valid_sid_rate(free, index, spec)
        for width in args.beam_widths:
            n = args.beam_samples
            found = self.model.rank_items(
                prompts[:n], searched, width, f"{task.name}: {width} beams", banned and banned[:n]
            )
            narrow = [
                rank.line(example, hypotheses, index, args.sid_to_item, args.seed, skip)
                for example, hypotheses, skip in zip(examples[:n], found, seen[:n], strict=True)
            ]
            recall = rank.score(examples[:n], narrow, spec).columns
            point = {f"recall@{k}": round(float(np.mean(recall[f"recall@{k}"])), 6) for k in (1, 10, 32)}
            self.extra["beams"].setdefault(task.name, []).append({"width": width, "samples": len(narrow), **point})
        return TaskResult(scores, list(scores.columns), figures)

    def _label(self, task: BenchTask) -> TaskResult:
        self.model.check_spec(load_spec(self.args.data_dir), self.args.data_dir)
        examples = self._examples(task)
        prompts, _ = self._prompts(task.name, [e.messages for e in examples], 8)
        pairs = self.model.answer_logprobs(prompts, YES_NO, task.name)
        lines = [label.line(e, yes, no) for e, (yes, no) in zip(examples, pairs, strict=True)]
        self._save_predictions(task.name, lines)
        return TaskResult(label.score(examples, lines), label.METRICS, {"samples": len(lines)})

    def _text(self, task: BenchTask) -> TaskResult:
        self.model.check_spec(load_spec(self.args.data_dir), self.args.data_dir)
        examples = self._examples(task)
        budget = self._answer_tokens(task)
        prompts, thoughts = self._prompts(task.name, [e.messages for e in examples], budget)
        texts = self._generate(prompts, budget, task.name)
        lines = [text.line(*row) for row in zip(examples, texts, thoughts, strict=True)]
        self._save_predictions(
            task.name, lines
        )  # before the judge is asked: its cache and these make a second run cheap
        label_ = f"{task.name}: judge"
        if task.kind == "understand":
            scores, counts, reasons = text.score_understanding(examples, texts, self.judge, self.args.encoder, label_)
        else:
            scores, counts, reasons = text.score_reasoning(examples, texts, self.judge, label_)
        if reasons:
            self.extra["unjudged"][task.name] = reasons
        return TaskResult(scores, list(scores.columns), {"samples": len(lines), **counts})

    def _general(self) -> TaskResult:
        texts, questions = general.load(self.args.data_dir, self.args.sample_size)
        tokenizer, budget = self.model.tokenizer, self._answer_tokens(task_of(GENERAL))
        start = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
        coded = [[start, *ids] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        nats = [-total for total in self.model.rolling_logprobs(coded, "general: text")]
        prompts = self.model.prompt_ids([q.messages for q in questions], False, budget)
        answers = self._generate(prompts, budget, "general: questions")
        lines = [{"uuid": q.uuid, "answer": q.answer, "text": a} for q, a in zip(questions, answers, strict=True)]
        self._save_predictions(GENERAL, lines)
        scores = general.score(questions, answers, texts, nats)
        names = [name for name in scores.columns if name.startswith("exact_match")]
        return TaskResult(scores, [*names, "bits_per_byte"], {"samples": len(lines)})

    def _answer_tokens(self, task: BenchTask) -> int:
        """Tokens that an answer may have: the task's, the flag's, and never more than a quarter of the context."""
        limits = [task.new_tokens, self.model.context // 4]
        return min([*limits, self.args.max_answer_tokens] if self.args.max_answer_tokens > 0 else limits)

    def _generate(self, prompts: Sequence[list[int]], budget: int, name: str) -> list[str]:
        """Text that the model writes behind the prompts, without special tokens."""
        ids = self.model.generate(prompts, budget, [], name)
        decoded = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [split_thinking(value)[1].strip() for value in decoded]

    def _save_predictions(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        path = self.folder / f"predictions_{name}.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.manifest.output(path, len(lines))


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
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(x.ljust(w) if i < 2 else x.rjust(w) for i, (x, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    tasks = choose_tasks(args.data_dir, args.tasks)
    print("config:")
    for key, value in vars(args).items():
        print(f"  {key} = {value}")
    print(f"  tasks to run = {', '.join(tasks)}", flush=True)
    evaluation = Evaluation(args, tasks)
    for name in tasks:
        start = time.monotonic()
        metrics = evaluation.run_task(name)
        print(
            f"{headline(name, metrics)}  ({metrics['samples']:.0f} samples, {time.monotonic() - start:.1f} s)",
            flush=True,
        )
    evaluation.save()
    print(
        f"\n{evaluation.model.speed_line()}\nresult {args.result_name}\n{result_table(evaluation.metrics, evaluation.extra['intervals'])}"
    )
    for name, reasons in evaluation.extra["unjudged"].items():
        print(f"{name}: not judged: " + ", ".join(f"{n} ({reason})" for reason, n in reasons.items()))
    if evaluation.judge:
        print(f"judge: {json.dumps(evaluation.judge.report(), ensure_ascii=False)}")
    print(f"{evaluation.manifest.dropped_text()}; metrics in {evaluation.folder / 'metrics.json'}")
    print(f"prompts cut to the context: {evaluation.model.truncated}")


if __name__ == "__main__":
    # vLLM's engine is a process that outlives a killed one.
    kept(cli(main))()
