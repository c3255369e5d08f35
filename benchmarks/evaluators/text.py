"""Generated text: item understanding by information points, recommendation reasoning by a score from 1 to 5.

Both ask a judge where there is one; what it could not judge is NaN and counted by reason, never zero. Beside it, or
alone where no judge is set, stands a similarity to the reference that is named for what it is.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluators.base import Evaluator, Result, with_thought, write_answers
from benchmarks.evaluators.similarity import char_rouge_l, embedding_similarity
from benchmarks.judge import Judge, Verdict, parse_json
from benchmarks.model import BenchModel
from benchmarks.results import Scores, scores_of
from benchmarks.tasks import Example

F1, PRECISION, RECALL = "macro_wip_double_weighted_f1", "wip_precision", "wip_recall"
LLM_SCORE = "llm_score"
NO_POINTS = "no information points in the reference"
Points = list[tuple[str, int]]
# Scores, counts of judged and unjudged samples, unjudged samples by reason.
Judged = tuple[Scores, dict[str, float], dict[str, int]]


@functools.cache
def prompts(language: str) -> dict[str, str]:
    """What the judge is asked, by name, about data in a language."""
    found = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    return found[language if language in found else "en"]


class TextEvaluator(Evaluator):
    """Text is written, and compared with the reference by a judge or by likeness."""

    @property
    def sample_size(self) -> int:
        """See `Evaluator.sample_size`; these tasks may have their own."""
        return self.args.text_sample_size or self.args.sample_size

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`."""
        model.check_spec(self.data.spec, self.data.folder)
        budget = self.answer_tokens(model)
        prompts, thoughts = self.prompts(model, budget)
        self.texts = write_answers(model, prompts, budget, self.task.name)
        return [
            with_thought({"uuid": e.uuid, "uid": e.uid, "reference": e.answer, "text": written}, thought)
            for e, written, thought in zip(self.examples, self.texts, thoughts, strict=True)
        ]

    def score(self, judge: Judge | None) -> Result:
        """See `Evaluator.score`; samples that were not judged are noted by reason."""
        scores, counts, reasons = self.judged(judge, f"{self.task.name}: judge")
        figures = {"samples": len(self.texts), **counts}
        return Result(scores, list(scores.columns), figures, {"unjudged": reasons} if reasons else {})

    def judged(self, judge: Judge | None, label: str) -> Judged:
        """The texts' scores."""
        raise NotImplementedError


class UnderstandEvaluator(TextEvaluator):
    """What an item is about."""

    def judged(self, judge: Judge | None, label: str) -> Judged:
        """See `score_understanding`."""
        return score_understanding(self.examples, self.texts, judge, self.args.encoder, label, self.data.words.language)


class ReasonEvaluator(TextEvaluator):
    """Why an item is recommended."""

    def judged(self, judge: Judge | None, label: str) -> Judged:
        """See `score_reasoning`."""
        return score_reasoning(self.examples, self.texts, judge, label, self.data.words.language)


def parse_points(text: str) -> Points:
    """Points with importance 1 to 5; raises ValueError where the answer is anything else."""
    value = parse_json(text)
    found = value["points"] if isinstance(value, dict) else value
    points = []
    for item in found:
        importance = item["importance"]
        if isinstance(importance, bool) or int(importance) != float(importance) or not 1 <= int(importance) <= 5:
            raise ValueError(f"importance {importance}")
        if not isinstance(item["point"], str) or not item["point"].strip():
            raise ValueError("a point without text")
        points.append((item["point"].strip(), int(importance)))
    return points


def parse_matches(text: str, n_reference: int, n_answer: int) -> np.ndarray:
    """Match quality [n_reference, n_answer], 0 where two points do not match; raises ValueError on anything else."""
    value = parse_json(text)
    quality = np.zeros((n_reference, n_answer))
    for item in value["matches"] if isinstance(value, dict) else value:
        i, j, q = int(item["reference"]) - 1, int(item["answer"]) - 1, float(item["quality"])
        if not (0 <= i < n_reference and 0 <= j < n_answer and 0 <= q <= 1):
            raise ValueError(f"match {item}")
        quality[i, j] = max(quality[i, j], q)
    return quality


def parse_score(text: str) -> float:
    """A whole score from 1 to 5; raises ValueError on anything else."""
    value = parse_json(text)["score"]
    if isinstance(value, bool) or float(value) not in (1, 2, 3, 4, 5):
        raise ValueError(f"score {value}")
    return float(value)


def double_weighted(reference: Sequence[int], answer: Sequence[int], quality: np.ndarray) -> tuple[float, float, float]:
    """(F1, precision, recall) of matched information points, weighted by importance and by match quality.

    Args:
        reference: importance of the reference's points [n]; answer: of the answer's [m]; quality: [n, m], 0 to 1.

    Points are matched one to one so that Σ quality is largest. recall = Σ_matched w_i q_ij / Σ_i w_i over the
    reference's points, precision = Σ_matched w_j q_ij / Σ_j w_j over the answer's; 0 where a side has no points.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(quality, maximize=True)
    q = quality[rows, columns]
    w, v = np.asarray(reference, dtype=float), np.asarray(answer, dtype=float)
    recall = float((w[rows] * q).sum() / w.sum()) if len(w) else 0.0
    precision = float((v[columns] * q).sum() / v.sum()) if len(v) else 0.0
    total = precision + recall
    return (2 * precision * recall / total if total else 0.0), precision, recall


def judge_points(judge: Judge, reference: str, answer: str, language: str) -> Verdict[tuple[float, float, float]]:
    """(F1, precision, recall) of an answer by the judge's information points."""
    if not answer.strip():
        return Verdict((0.0, 0.0, 0.0))
    sides: list[Points] = []
    for text in (reference, answer):
        found = judge.ask(prompts(language)["points"].format(text=text), parse_points)
        if found.value is None:
            return Verdict(None, found.problem)
        sides.append(found.value)
    if not sides[0]:
        return Verdict(None, NO_POINTS)
    if not sides[1]:
        return Verdict((0.0, 0.0, 0.0))
    lists = ["\n".join(f"{i}. {point}" for i, (point, _) in enumerate(side, 1)) for side in sides]
    question = prompts(language)["match"].format(reference=lists[0], answer=lists[1])
    matched = judge.ask(question, lambda text: parse_matches(text, len(sides[0]), len(sides[1])))
    if matched.value is None:
        return Verdict(None, matched.problem)
    weights = [[importance for _, importance in side] for side in sides]
    return Verdict(double_weighted(weights[0], weights[1], matched.value))


def score_understanding(
    examples: Sequence[Example], texts: Sequence[str], judge: Judge | None, encoder: str, label: str, language: str
) -> Judged:
    """Item understanding, by the judge's information points where there is a judge."""
    references = [e.answer for e in examples]
    columns = {"embedding_similarity": embedding_similarity(references, texts, encoder)}
    counts: dict[str, float] = {}
    reasons: dict[str, int] = {}
    if judge:
        pairs = list(zip(references, texts, strict=True))
        verdicts = judge.map(lambda pair: judge_points(judge, *pair, language), pairs, label)
        values, counts, reasons = _collect(verdicts, 3)
        columns |= dict(zip((F1, PRECISION, RECALL), values.T, strict=True))
    return scores_of(examples, columns), counts, reasons


def score_reasoning(
    examples: Sequence[Example], texts: Sequence[str], judge: Judge | None, label: str, language: str
) -> Judged:
    """Recommendation reasoning, by the judge's score where there is a judge."""
    references = [e.answer for e in examples]
    columns = {"char_rouge_l": np.array([char_rouge_l(r, t) for r, t in zip(references, texts, strict=True)])}
    if judge is None:
        counts = {"judged": 0, "unjudged": len(examples)}
        return scores_of(examples, columns), counts, {"no judge set": len(examples)}

    def work(row: int) -> Verdict[float]:
        if not texts[row].strip():
            return Verdict(1.0)  # nothing was written: the scale's lowest score says just that
        asked = "\n".join(turn["content"] for turn in examples[row].messages)
        question = prompts(language)["reason"].format(task=asked, reference=references[row], answer=texts[row])
        return judge.ask(question, parse_score)

    values, counts, reasons = _collect(judge.map(work, range(len(examples)), label), 1)
    return scores_of(examples, columns | {LLM_SCORE: values[:, 0]}), counts, reasons


def _collect(verdicts: Sequence[Verdict[Any]], width: int) -> tuple[np.ndarray, dict[str, float], dict[str, int]]:
    values = np.full((len(verdicts), width), math.nan)
    for row, verdict in enumerate(verdicts):
        if verdict.value is not None:
            values[row] = verdict.value
    reasons = Counter(str(v.problem) for v in verdicts if v.value is None)
    unjudged = sum(reasons.values())
    return values, {"judged": len(verdicts) - unjudged, "unjudged": unjudged}, dict(reasons)
