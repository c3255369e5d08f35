"""Evaluate a checkpoint on RecIF-Bench: recommendation by constrained beam search, label prediction, general ability.

    python evaluate.py --model_path ../pretrain/output/sft/hf --result_name sft --data_dir ../data/output/benchmark_data \\
        --output_dir results/v1.0
    python evaluate.py --model_path models/base/hf --result_name base --tasks general …    # a model without SIDs

Writes results_<name>/metrics.json, predictions_<task>.jsonl and manifest.json. eval_script.sh keeps the log.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.journal import open_journal
from benchmarks.metrics import auc, bits_per_byte, mean_by_name, ranking_metrics, weighted_user_auc
from benchmarks.model import add_model_arguments, open_model
from benchmarks.results import Metrics, save_metrics
from benchmarks.tasks import GENERAL, TASKS, BenchTask, available_tasks, load_examples, load_spec
from onerec.catalog import ItemIndex
from onerec.errors import InputError, cli
from onerec.parquet import read_table
from onerec.records import parse_messages, parse_segments
from onerec.run import Manifest, write_text

YES_NO = ("是", "否")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_path", type=Path, required=True, help="Hugging Face checkpoint folder")
    parser.add_argument("--result_name", required=True, help="name of the result")
    parser.add_argument(
        "--data_dir", type=Path, required=True, help="benchmark_data folder of the data stage"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for results_<result_name>/")
    parser.add_argument(
        "--enable_thinking", choices=("true", "false"), default="false", help="think before the items"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=None, help=f"of {', '.join(TASKS)}, {GENERAL} (default: all there are)"
    )
    parser.add_argument(
        "--sample_size", type=int, default=-1, help="test rows a task, from the first (-1: all)"
    )
    parser.add_argument("--num_beams", type=int, default=32, help="beams of the item search")
    parser.add_argument("--max_thinking_tokens", type=int, default=256, help="tokens of thinking at most")
    parser.add_argument(
        "--max_answer_tokens", type=int, default=24, help="tokens of a general answer at most"
    )
    parser.add_argument(
        "--exclude_seen", action="store_true", help="never recommend the items of the history"
    )
    add_model_arguments(parser)
    return parser.parse_args(argv)


class Evaluation:
    """One run over the tasks: the model, the data and what is written."""

    def __init__(self, args: argparse.Namespace, tasks: Sequence[str]) -> None:
        self.args, self.folder = args, args.output_dir / f"results_{args.result_name}"
        self.thinking = args.enable_thinking == "true"
        self.journal = open_journal(args, self.folder, tasks)
        self.model = open_model(args, self.journal)
        self.manifest = Manifest("evaluate", args)
        self._indexes: dict[str, ItemIndex] = {}
        self._popularity: dict[str, dict[int, int]] | None = None

    def run_task(self, name: str) -> dict[str, float]:
        """Metrics of one task by name."""
        if name == GENERAL:
            return self._general()
        task = TASKS[name]
        return self._label(task) if task.kind == "label" else self._rank(task)

    def index(self, task: BenchTask) -> ItemIndex:
        """The catalogue of a task; items that share a SID are ordered by how often training targets them."""
        if task.catalogue not in self._indexes:
            spec = load_spec(self.args.data_dir)
            path = self.args.data_dir / f"{task.catalogue}_pid2sid.parquet"
            self._indexes[task.catalogue] = ItemIndex.load(path, spec, self._counts(task.catalogue))
        return self._indexes[task.catalogue]

    def _counts(self, catalogue: str) -> dict[int, int]:
        if self._popularity is None:
            from benchmarks.baselines import SEQUENCES

            self._popularity = {}
            path = self.args.data_dir / SEQUENCES
            for row in (
                read_table(path, ["task", "target_pid"], allow_empty=True).to_pylist()
                if path.exists()
                else []
            ):
                if row["task"] in TASKS:
                    counts = self._popularity.setdefault(TASKS[row["task"]].catalogue, {})
                    for pid in row["target_pid"] or []:
                        counts[pid] = counts.get(pid, 0) + 1
        return self._popularity.get(catalogue, {})

    def _prompts(self, name: str, conversations: Sequence[Any], room: int) -> list[list[int]]:
        if not self.thinking:
            return self.model.prompt_ids(conversations, False, room)
        budget = self.args.max_thinking_tokens
        prompts = self.model.prompt_ids(conversations, True, room + budget)
        return self.model.think(prompts, budget, f"{name}: thinking")

    def _rank(self, task: BenchTask) -> dict[str, float]:
        spec = self.model.check_spec(load_spec(self.args.data_dir), self.args.data_dir)
        examples = load_examples(self.args.data_dir, task, self.args.sample_size)
        self.manifest.input(task.name, len(examples))
        index = self.index(task)
        prompts = self._prompts(task.name, [e.messages for e in examples], spec.n_layers + 1)
        seen = [set(e.history) if self.args.exclude_seen else set() for e in examples]
        banned = [index.sids_within(pids) for pids in seen] if self.args.exclude_seen else None
        ranked = self.model.rank_items(prompts, index, self.args.num_beams, task.name, banned)
        rows, lines = [], []
        for example, hypotheses, skip in zip(examples, ranked, seen, strict=True):
            ids = [pid for h in hypotheses for pid in index.pids_of(h.codes) if pid not in skip]
            by_item = ranking_metrics(ids, example.answer_ids)
            answer_sids = list(dict.fromkeys(spec.parse(example.answer)))
            by_sid = ranking_metrics([h.codes for h in hypotheses], answer_sids) if answer_sids else {}
            rows.append(by_item | {f"sid_{key}": by_sid.get(key, 0.0) for key in by_item})
            lines.append(
                {
                    "uuid": example.uuid,
                    "uid": example.uid,
                    "answer": example.answer_ids,
                    "items": ids[: self.args.num_beams],
                    "sids": [list(h.codes) for h in hypotheses],
                    "logprobs": [round(h.logprob, 5) for h in hypotheses],
                }
            )
        self._save_predictions(task.name, lines)
        recommended = {pid for line in lines for pid in line["items"][:10]}
        return mean_by_name(rows) | {"coverage@10": len(recommended) / index.n_items, "samples": len(rows)}

    def _label(self, task: BenchTask) -> dict[str, float]:
        self.model.check_spec(load_spec(self.args.data_dir), self.args.data_dir)
        examples = load_examples(self.args.data_dir, task, self.args.sample_size)
        self.manifest.input(task.name, len(examples))
        prompts = self._prompts(task.name, [e.messages for e in examples], 8)
        pairs = self.model.answer_logprobs(prompts, YES_NO, task.name)
        scores = [yes - no for yes, no in pairs]
        labels = [example.answer_ids[0] for example in examples]
        users = [example.uid for example in examples]
        lines = [
            {"uuid": e.uuid, "uid": e.uid, "label": y, "score": round(s, 5)}
            for e, y, s in zip(examples, labels, scores, strict=True)
        ]
        self._save_predictions(task.name, lines)
        return {
            "auc": auc(labels, scores),
            "user_auc": weighted_user_auc(users, labels, scores),
            "samples": len(examples),
        }

    def _general(self) -> dict[str, float]:
        folder = self.args.data_dir / GENERAL
        texts = [
            parse_segments(value)
            for value in read_table(folder / "text.parquet", ["segments"])["segments"].to_pylist()
        ]
        questions = read_table(folder / "qa.parquet", ["uuid", "messages", "metadata"]).to_pylist()
        if self.args.sample_size > 0:
            texts, questions = texts[: self.args.sample_size], questions[: self.args.sample_size]
        tokenizer = self.model.tokenizer
        start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        coded = [
            [start, *ids][: self.model.context]
            for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]
        ]
        nats = -sum(self.model.text_logprobs(coded, "general: text"))
        conversations = [
            [turn for turn in parse_messages(row["messages"]) if turn["role"] != "assistant"]
            for row in questions
        ]
        prompts = self.model.prompt_ids(conversations, False, self.args.max_answer_tokens)
        answers = self.model.generate(prompts, self.args.max_answer_tokens, [], "general: questions")
        rows, lines = [], []
        for row, ids in zip(questions, answers, strict=True):
            metadata, text = (
                json.loads(row["metadata"]),
                tokenizer.decode(ids, skip_special_tokens=True).strip(),
            )
            rows.append({"kind": metadata.get("kind", "qa"), "hit": float(text == metadata["answer"])})
            lines.append({"uuid": row["uuid"], "answer": metadata["answer"], "text": text})
        self._save_predictions(GENERAL, lines)
        result = {
            "exact_match": mean_by_name([{"hit": r["hit"]} for r in rows])["hit"],
            "bits_per_byte": bits_per_byte(nats, sum(len(text.encode()) for text in texts)),
            "samples": len(rows),
        }
        for kind in sorted({r["kind"] for r in rows}):
            result[f"exact_match_{kind}"] = mean_by_name(
                [{"hit": r["hit"]} for r in rows if r["kind"] == kind]
            )["hit"]
        return result

    def _save_predictions(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        path = self.folder / f"predictions_{name}.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.manifest.output(path, len(lines))


def headline(name: str, metrics: dict[str, float]) -> str:
    """One line a task, for the log."""
    keys = {
        "rank": ("pass@1", "pass@10", "pass@32", "position1_pass@10", "recall@10", "recall@32", "ndcg@10"),
        "label": ("auc", "user_auc"),
        GENERAL: ("exact_match", "bits_per_byte"),
    }[TASKS[name].kind if name in TASKS else GENERAL]
    return f"{name:12s} " + "  ".join(f"{key} {metrics[key]:.4f}" for key in keys)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    found = available_tasks(args.data_dir)
    tasks = args.tasks or found
    for name in tasks:
        if name not in TASKS and name != GENERAL:
            raise InputError("--tasks", f"{name} is not a task", f"of {', '.join(TASKS)}, {GENERAL}")
        if name not in found:
            raise InputError(
                args.data_dir, f"has no test file of {name}", f"it has {', '.join(found) or 'none'}"
            )
    if not tasks:
        raise InputError(
            args.data_dir, "holds no <task>/<task>_test.parquet", "give the benchmark_data folder"
        )
    config = {key: str(value) for key, value in vars(args).items()}
    print("config:", json.dumps(config, ensure_ascii=False), flush=True)
    evaluation = Evaluation(args, tasks)
    metrics: Metrics = {}
    for name in tasks:
        start = time.monotonic()
        metrics[name] = evaluation.run_task(name)
        print(
            f"{headline(name, metrics[name])}  ({metrics[name]['samples']:.0f} samples, {time.monotonic() - start:.1f} s)",
            flush=True,
        )
    evaluation.manifest.drop("prompt cut to the context", evaluation.model.truncated)
    save_metrics(evaluation.folder, args.result_name, metrics, evaluation.manifest, config)
    evaluation.journal.finish()
    print(f"\n{evaluation.model.speed_line()}\nresult {args.result_name}")
    for name in tasks:
        print(f"  {headline(name, metrics[name])}")
    print(
        f"metrics in {evaluation.folder / 'metrics.json'}; prompts cut to the context: {evaluation.model.truncated}"
    )


if __name__ == "__main__":
    cli(main)()
