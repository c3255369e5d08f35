"""Label prediction: how well log P(是) − log P(否) orders what the user did."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.evaluators.base import Evaluator, Result
from benchmarks.judge import Judge
from benchmarks.model import BenchModel
from benchmarks.results import scores_of
from benchmarks.tasks import YES_NO

METRICS = ("auc", "user_auc")
ROOM = 8  # tokens of the context that are left for the answer


class LabelEvaluator(Evaluator):
    """Yes or no: the answer's probability is asked for, nothing is generated."""

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`."""
        model.check_spec(self.data.spec, self.data.folder)
        prompts, _ = self.prompts(model, ROOM)
        pairs = model.answer_logprobs(prompts, YES_NO, self.task.name)
        self.lines = [
            {"uuid": e.uuid, "uid": e.uid, "label": e.answer_ids[0], "score": round(yes - no, 5)}
            for e, (yes, no) in zip(self.examples, pairs, strict=True)
        ]
        return self.lines

    def score(self, judge: Judge | None) -> Result:
        """Labels and scores, from which `intervals.statistic` makes AUC and per-user weighted AUC."""
        columns = {name: np.array([float(line[name]) for line in self.lines]) for name in ("label", "score")}
        return Result(scores_of(self.examples, columns), METRICS, {"samples": len(self.lines)})
