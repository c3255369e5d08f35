"""Label prediction: how well log P(yes) − log P(no) orders what the user did, in the answers' own words."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.evaluators.base import Evaluator, Result
from benchmarks.judge import Judge
from benchmarks.model import BenchModel
from benchmarks.results import scores_of

METRICS = ("auc", "user_auc")
ROOM = 8  # tokens of the context that are left for the answer


class LabelEvaluator(Evaluator):
    """Yes or no: the answer's probability is asked for, nothing is generated."""

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """See `Evaluator.ask`."""
        model.check_spec(self.data.spec, self.data.folder)
        prompts, _ = self.prompts(model, ROOM)
        pairs = model.answer_logprobs(prompts, self.data.words.yes_no, self.task.name)
        self.lines = [
            {"uuid": e.uuid, "uid": e.uid, "label": e.answer_ids[0], "score": round(yes - no, 5)}
            for e, (yes, no) in zip(self.examples, pairs, strict=True)
        ]
        return self.lines

    def score(self, judge: Judge | None) -> Result:
        """Labels and scores, from which `intervals.statistic` makes AUC and per-user weighted AUC."""
        columns = {name: np.array([float(line[name]) for line in self.lines]) for name in ("label", "score")}
        return Result(scores_of(self.examples, columns), METRICS, {"samples": len(self.lines)})
