"""General ability on held-out text: exact match of answers, and bits per byte."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluators.base import Evaluator, Result, write_answers
from benchmarks.judge import Judge
from benchmarks.model import BenchModel
from benchmarks.results import Scores
from benchmarks.tasks import GENERAL, drawn_rows
from onerec.errors import reading
from onerec.parquet import Kind, read_table
from onerec.records import TEST_KINDS, parse_segments, read_test
from onerec.run import Manifest


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out question: its prompt's messages, the answer and what kind of question it is."""

    uuid: str
    messages: list[dict[str, str]]
    answer: str
    kind: str


class GeneralEvaluator(Evaluator):
    """Questions to answer, and texts whose probability is asked for. A model without SIDs can be measured."""

    def load(self, manifest: Manifest) -> None:
        """See `Evaluator.load`."""
        self.texts, self.questions = read_general(self.data.folder, self.sample_size, self.sample_seed)

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`; a line a question."""
        start, budget = model.tokenizer.convert_tokens_to_ids(model.renderer.text_end), self.answer_tokens(model)
        coded = [
            [start, *ids] for ids in model.tokenizer([*self.texts.values()], add_special_tokens=False)["input_ids"]
        ]
        self.nats = [-total for total in model.rolling_logprobs(coded, "general: text")]
        prompts = model.prompt_ids([q.messages for q in self.questions], False, budget)
        self.answers = write_answers(model, prompts, budget, "general: questions")
        pairs = zip(self.questions, self.answers, strict=True)
        return [{"uuid": q.uuid, "answer": q.answer, "text": text} for q, text in pairs]

    def score(self, judge: Judge | None) -> Result:
        """See `Evaluator.score`."""
        scores = general_scores(self.questions, self.answers, self.texts, self.nats)
        names = [name for name in scores.columns if name.startswith("exact_match")]
        return Result(scores, [*names, "bits_per_byte"], {"samples": len(self.questions)})


def read_general(folder: Path, sample_size: int, seed: int) -> tuple[dict[str, str], list[Question]]:
    """(texts by name, questions) of the benchmark data, ``sample_size`` of each drawn by ``seed`` (-1: all)."""
    path, questions = folder / GENERAL / "text.parquet", []
    with reading(path, "has a row that is no record"):
        texts = [parse_segments(v) for v in read_table(path, {"segments": Kind.JSON})["segments"].to_pylist()]
    path = folder / GENERAL / "qa.parquet"
    with reading(path, "has a row that is no question with an answer"):
        for row in read_table(path, TEST_KINDS).to_pylist():
            metadata, turns = read_test(row)
            questions.append(Question(row["uuid"], turns, metadata["answer"], metadata.get("kind", "qa")))
    chosen, asked = (drawn_rows(len(rows), sample_size, seed).tolist() for rows in (texts, questions))
    return {f"text {row}": texts[row] for row in chosen}, [questions[row] for row in asked]


def general_scores(
    questions: Sequence[Question], answers: Sequence[str], texts: Mapping[str, str], nats: Sequence[float]
) -> Scores:
    """Hits of the questions (also by kind), and bits and bytes of the texts; a row is one or the other."""
    n = len(questions)
    hits = np.array([float(text == q.answer) for q, text in zip(questions, answers, strict=True)])
    empty = np.full(len(texts), math.nan)
    columns = {"exact_match": np.concatenate([hits, empty])}
    for kind in sorted({q.kind for q in questions}):
        of_kind = np.where([q.kind == kind for q in questions], hits, math.nan)
        columns[f"exact_match_{kind}"] = np.concatenate([of_kind, empty])
    columns["bits"] = np.concatenate([np.zeros(n), np.array(nats) / math.log(2)])
    columns["bytes"] = np.concatenate([np.zeros(n), [len(text.encode()) for text in texts.values()]])
    ids = [q.uuid for q in questions] + [*texts]
    return Scores(ids, ids, columns)
