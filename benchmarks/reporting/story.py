"""What a chain is to show, step by step, and whether this run shows it: each claim with its paired interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from benchmarks.intervals import Paired, paired, paired_mean
from benchmarks.reporting.compare import COUNTING, Comparison
from benchmarks.reporting.pictures import RECALL, best_mean, general_metric, mean_recall, ranking_tasks
from benchmarks.reporting.rows import Row, title_of
from benchmarks.results import Scores
from benchmarks.tasks import GENERAL, LESS_IS_BETTER

HOLDS, FAILS, OPEN = "holds", "fails", "open"
NOTE = "Intervals: 95 %, over the test users of this run. Another seed trains another model and may tell another story."
_SAYS = {HOLDS: "yes", FAILS: "no", OPEN: "not certain"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """A step of the story: what is claimed, whether it ``holds``, ``fails`` or is ``open``, and the numbers."""

    claim: str
    verdict: str
    numbers: str

    @property
    def text(self) -> str:
        """The claim with its verdict."""
        return f"{self.claim}: {_SAYS[self.verdict]}."

    def __str__(self) -> str:
        return f"{self.text} {self.numbers}"


def gained(result: Paired, less_is_better: bool = False) -> str:
    """Whether there is more: by the interval of the difference, above zero, below it, or neither."""
    low, high = _better(result, less_is_better)
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def kept(result: Paired, less_is_better: bool = False) -> str:
    """Whether there is no less: an interval that reaches below zero is no proof, and one wholly below is a loss."""
    low, high = _better(result, less_is_better)
    return HOLDS if low >= 0 else FAILS if high < 0 else OPEN


def _better(result: Paired, less_is_better: bool) -> tuple[float, float]:
    return (-result.high, -result.low) if less_is_better else (result.low, result.high)


def story(rows: Sequence[Row], against: Sequence[Comparison], n_boot: int) -> list[Claim]:
    """The claims that these results can tell; ``against``: the last stage and the best baseline of each task."""
    stages = [row for row in rows if row.kind == "stage"]
    by_name = {row.name: row for row in stages}
    sft = by_name.get("sft", stages[-1])
    teller, found = _Teller(rows, n_boot), []
    counting = best_mean(rows, teller.tasks, COUNTING)
    best = best_mean(rows, teller.tasks)
    for row in (sft, *[row for row in rows if row.kind == "prior"][-1:]):
        if counting:
            found.append(teller.recommends(f"{row.label} recommends better than counting", counting[0], row))
        if best and (not counting or best[0] is not counting[0]):
            found.append(teller.recommends(f"{row.label} recommends better than the best baseline", best[0], row))
    base, distilled, trained = (by_name.get(name) for name in ("base", "distill", "rl"))
    if base and base is not sft:
        found.append(teller.keeps(f"{sft.label} keeps the general ability of {base.label}", base, sft))
    if distilled and distilled is not sft:
        found.append(teller.wins_back(base, sft, distilled))
        found.append(teller.keeps_recommending(sft, distilled))
    if trained and (before := distilled or by_name.get("sft")):
        claim = f"{trained.label} (GRPO) adds to the recommendation of {before.label}"
        found.append(teller.recommends(claim, before, trained))
    found.append(_task_by_task(rows, stages[-1], [c for c in against if c.after == stages[-1].label]))
    return [claim for claim in found if claim]


class _Teller:
    """Claims about two results of the same rows."""

    def __init__(self, rows: Sequence[Row], n_boot: int) -> None:
        self.tasks = ranking_tasks(rows)
        self.general = general_metric(rows)
        self._falls = self.general in LESS_IS_BETTER
        self.n_boot = n_boot
        self.recall = f"mean Recall@10 over {len(self.tasks)} tasks"
        if len(self.tasks) == 1:
            self.recall = f"{title_of(rows, self.tasks[0])} Recall@10"
        asked = ("share of questions answered right", "questions"), ("bits a byte of text", "rows")
        self.ability, self.of = asked[self.general == "bits_per_byte"]

    def _mean(self, before: Row, after: Row) -> Paired | None:
        if None in (mean_recall(before, self.tasks), mean_recall(after, self.tasks)):
            return None
        scores = [[Scores.load(row.folder, task) for row in (before, after)] for task in self.tasks]
        whole = all(one and two and RECALL in one.columns and RECALL in two.columns for one, two in scores)
        return paired_mean(RECALL, scores, self.n_boot) if whole else None

    def _general(self, before: Row, after: Row) -> Paired | None:
        one, two = (Scores.load(row.folder, GENERAL) for row in (before, after))
        if not (self.general and one and two) or None in (r.cell(GENERAL, self.general) for r in (before, after)):
            return None
        return paired(self.general, one, two, self.n_boot)

    def recommends(self, claim: str, before: Row, after: Row) -> Claim | None:
        """That ``after`` recommends better than ``before``."""
        result = self._mean(before, after)
        return result and Claim(claim, gained(result), _numbers(self.recall, before, after, result, "users"))

    def keeps_recommending(self, before: Row, after: Row) -> Claim | None:
        """That ``after`` recommends no worse."""
        result = self._mean(before, after)
        claim = f"{after.label} recommends as well as {before.label}"
        return result and Claim(claim, kept(result), _numbers(self.recall, before, after, result, "users"))

    def keeps(self, claim: str, before: Row, after: Row) -> Claim | None:
        """That ``after`` has as much general ability."""
        result = self._general(before, after)
        return result and Claim(
            claim, kept(result, self._falls), _numbers(self.ability, before, after, result, self.of)
        )

    def wins_back(self, base: Row | None, sft: Row, distilled: Row) -> Claim | None:
        """That distillation wins general ability back, and how much of what was lost."""
        result = self._general(sft, distilled)
        if result is None:
            return None
        numbers = _numbers(self.ability, sft, distilled, result, self.of)
        side, start = gained(result, self._falls), base.cell(GENERAL, self.general) if base else None
        lost = 0.0 if start is None else (result.a - start if self._falls else start - result.a)
        if side == HOLDS and lost > 0:
            numbers += f" That is {abs(result.difference) / lost:.0%} of what {sft.label} had lost."
        elif start is not None and lost <= 0:
            numbers += f" {sft.label} had lost nothing."
        return Claim(f"{distilled.label} (distillation) wins general ability back", side, numbers)


def _numbers(what: str, before: Row, after: Row, result: Paired, of: str) -> str:
    text = (
        f"{what}: {before.label} {result.a:.4f}, {after.label} {result.b:.4f}; difference {result.difference:+.4f}, "
        f"95 % interval {result.low:+.4f} to {result.high:+.4f}, {result.users:,} {of}."
    )
    text = text[0].upper() + text[1:]
    if result.low == result.high == 0:
        text += " No answer of one is better than that of the other."
    elif result.low <= 0 <= result.high:
        text += f" Zero lies within: more test {of} or a longer training would tell."
    return text


def _task_by_task(rows: Sequence[Row], last: Row, against: Sequence[Comparison]) -> Claim | None:
    """On how many of several tasks the last stage is above the best baseline of the task."""
    if len(against) < 2:
        return None
    sides: dict[str, list[str]] = {HOLDS: [], FAILS: [], OPEN: []}
    for c in against:
        sides[gained(c.result)].append(f"{title_of(rows, c.task)} ({c.before} {c.result.a:.4f}, here {c.result.b:.4f})")
    words = {HOLDS: "Above", FAILS: "Below", OPEN: "Too close to tell"}
    numbers = " ".join(f"{words[side]}: {', '.join(found)}." for side, found in sides.items() if found)
    claim = f"{last.label} is above the best baseline of each of {len(against)} tasks"
    return Claim(claim, FAILS if sides[FAILS] else OPEN if sides[OPEN] else HOLDS, numbers)
