"""An evaluator for every kind of task: `EVALUATORS` names them by the ``kind`` in the table of tasks."""

from __future__ import annotations

from benchmarks.evaluators.base import Evaluator
from benchmarks.evaluators.general import GeneralEvaluator
from benchmarks.evaluators.label import LabelEvaluator
from benchmarks.evaluators.rank import RankEvaluator
from benchmarks.evaluators.text import ReasonEvaluator, UnderstandEvaluator

EVALUATORS: dict[str, type[Evaluator]] = {
    "rank": RankEvaluator,
    "label": LabelEvaluator,
    "understand": UnderstandEvaluator,
    "reason": ReasonEvaluator,
    "general": GeneralEvaluator,
}
