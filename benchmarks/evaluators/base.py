"""What every kind of task is: an evaluator that loads its test rows, asks the model and scores the answers."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.catalogues import BenchData
from benchmarks.judge import Judge
from benchmarks.model import BenchModel
from benchmarks.results import Scores
from benchmarks.tasks import BenchTask, Example
from onerec.run import Manifest


@dataclasses.dataclass(frozen=True)
class Result:
    """What a task's answers are worth.

    ``metrics`` are read off the ``scores`` of the samples; ``figures`` are of the whole task; ``notes`` go into
    metrics.json by their names, with the task's name below.
    """

    scores: Scores
    metrics: Sequence[str]
    figures: dict[str, float]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Evaluator:
    """One task of a run: `load`, `ask` and `score` are called in this order. ``args`` are evaluate.py's flags."""

    examples: Sequence[Example]

    def __init__(self, task: BenchTask, data: BenchData, args: argparse.Namespace) -> None:
        self.task, self.data, self.args = task, data, args

    @property
    def sample_size(self) -> int:
        """Test rows, drawn by `sample_seed` (-1: all)."""
        return self.args.sample_size

    @property
    def sample_seed(self) -> int:
        """Seed of the draws of test rows."""
        return self.args.seed

    def load(self, manifest: Manifest) -> None:
        """Read the test rows; what is left out of them is counted in ``manifest``."""
        self.examples = self.data.examples(self.task, self.sample_size, manifest, self.sample_seed)

    def ask(self, model: BenchModel) -> list[dict[str, Any]]:
        """The model's answers: a line of the predictions for every test row."""
        raise NotImplementedError

    def score(self, judge: Judge | None) -> Result:
        """What the answers are worth."""
        raise NotImplementedError

    def doubtful(self) -> str:
        """What makes the scored answers useless, whatever their metrics; empty where nothing does."""
        return ""

    def prompts(self, model: BenchModel, room: int) -> tuple[list[list[int]], list[str]]:
        """Token ids that the answer follows, and what was thought before it (empty without thinking)."""
        conversations = [example.messages for example in self.examples]
        if self.args.enable_thinking != "true":
            return model.prompt_ids(conversations, False, room), [""] * len(conversations)
        budget = self.args.max_thinking_tokens
        marks = model.renderer.think_ids(model.tokenizer).most
        prompts = model.prompt_ids(conversations, True, room + budget + marks)
        whole = model.think(prompts, budget, f"{self.task.name}: thinking")
        thoughts = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
        decoded = model.tokenizer.batch_decode(thoughts, skip_special_tokens=False)
        return whole, [model.renderer.split_thinking(thought)[0].strip() for thought in decoded]

    def answer_tokens(self, model: BenchModel) -> int:
        """Tokens that an answer may have: the task's, the flag's, and never more than a quarter of the context."""
        limits = [self.task.new_tokens, model.context // 4]
        return min([*limits, self.args.max_answer_tokens] if self.args.max_answer_tokens > 0 else limits)


def write_answers(model: BenchModel, prompts: Sequence[list[int]], tokens: int, label: str) -> list[str]:
    """Text of at most ``tokens`` tokens that the model writes behind the prompts, without special tokens."""
    ids = model.generate(prompts, tokens, [], label)
    decoded = model.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [model.renderer.split_thinking(value)[1].strip() for value in decoded]


def with_thought(line: dict[str, Any], thought: str) -> dict[str, Any]:
    """A line of the predictions, with what was thought before the answer where something was."""
    return line | ({"thought": thought} if thought else {})
