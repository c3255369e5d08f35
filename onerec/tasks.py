"""The tasks, one row each: what the data stage makes, what RL trains on, what the benchmark asks and the reports show.

A new task is a row here, a builder of the row's name in ``data/onerec_data/``, and its prompts in
``data/onerec_data/prompts/``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

VIDEO_AD, PRODUCT = "video_ad", "product"  # the two catalogues
GENERAL, RANK, LABEL, UNDERSTAND, REASON = "general", "rank", "label", "understand", "reason"


@dataclasses.dataclass(frozen=True)
class BenchTask:
    """How the benchmark asks about a task.

    ``name`` is its folder, its test file and its heading. ``place`` orders the report. ``kind`` names its evaluator:
    ``rank`` items, ``label`` yes or no, ``understand`` an item, ``reason`` about a recommendation, ``general``
    ability. ``headline`` is the metric of the report's table, ``fallback`` the one that takes its place where no
    judge is set, ``log`` the metrics of the log's line. ``catalogue`` is where its items live. ``new_tokens``: the
    most text that it generates (0: items, or the probability of an answer). ``rl``: whether RL trains on it.
    """

    place: int
    name: str
    kind: str
    headline: str
    log: tuple[str, ...]
    catalogue: str = VIDEO_AD
    new_tokens: int = 0
    fallback: str = ""
    rl: bool = False

    @property
    def test_file(self) -> str:
        """Its test file, relative to the benchmark's data folder."""
        return f"{self.name}/{self.name}_test.parquet"

    @property
    def answer_ids(self) -> str:
        """The key of a test row's metadata that holds the answer's items: products are called iid in the release."""
        return "answer_iid" if self.catalogue == PRODUCT else "answer_pid"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the data stage.

    ``name`` is ``<stage>_<topic>``: ``pretrain`` is plain text, ``sft`` a conversation. ``source`` marks its records.
    ``test``: how the benchmark asks about it, None where it does not. ``default``: whether it is made, and mixed,
    where nobody names it.
    """

    name: str
    source: str
    test: BenchTask | None = None
    default: bool = True

    @property
    def stage(self) -> str:
        """``pretrain`` or ``sft``."""
        return self.name.partition("_")[0]

    @property
    def topic(self) -> str:
        """The name without its stage: the key of its prompts, and its name in a mix."""
        return self.name.partition("_")[2]

    @property
    def catalogue(self) -> str:
        """Where the items of its answers live."""
        return self.test.catalogue if self.test else VIDEO_AD

    @property
    def file(self) -> str:
        """The file of its records, in the output folder of the data stage."""
        return f"{self.name}.parquet"


def _rank(place: int, name: str, catalogue: str = VIDEO_AD, rl: bool = True) -> BenchTask:
    log = ("pass@1", "pass@10", "pass@32", "position1_pass@10", "recall@10", "recall@32", "ndcg@10")
    return BenchTask(place, name, RANK, "recall@10", log, catalogue, rl=rl)


def _label(place: int, name: str) -> BenchTask:
    return BenchTask(place, name, LABEL, "auc", ("auc", "user_auc"))


def _text(place: int, name: str, kind: str, new_tokens: int, headline: str, fallback: str) -> BenchTask:
    return BenchTask(place, name, kind, headline, (headline, fallback), new_tokens=new_tokens, fallback=fallback)


_F1 = "macro_wip_double_weighted_f1"
_ROWS = (
    Task("pretrain_video_rec", "RecIF_VideoRec_Pretrain"),
    Task("pretrain_user_profile", "RecIF_UserProfile_Pretrain"),
    Task("pretrain_item_understand", "RecIF_ItemUnderstand_Pretrain"),
    Task("sft_video_rec", "RecIF_VideoRec", _rank(1, "video")),
    Task("sft_interactive_rec", "RecIF_InteractiveRec", _rank(5, "interactive")),
    Task("sft_label_cond_rec", "RecIF_LabelCondRec", _rank(4, "label_cond")),
    Task("sft_label_pred", "RecIF_LabelPred", _label(6, "label_pred")),
    Task("sft_ad_rec", "RecIF_AdRec", _rank(2, "ad")),
    Task("sft_product_rec", "RecIF_ProductRec", _rank(3, "product", PRODUCT)),
    Task(
        "sft_item_understand",
        "RecIF_ItemUnderstand",
        _text(7, "item_understand", UNDERSTAND, 512, _F1, "embedding_similarity"),
    ),
    Task("sft_rec_reason", "RecIF_RecoReason", _text(8, "rec_reason", REASON, 1024, "llm_score", "char_rouge_l")),
    # For logs without a chain of thought: the thought is written from the items' tags.
    Task("sft_reco_reason", "RecIF_TagReason", default=False),
)
TASKS = {task.name: task for task in _ROWS}
# The benchmark's tasks by name, in the order of the report.
TESTED = {task.test.name: task for task in sorted(filter(lambda row: row.test, _ROWS), key=lambda row: row.test.place)}
BENCH_TASKS = {name: task.test for name, task in TESTED.items()}
RANK_TASKS = tuple(name for name, test in BENCH_TASKS.items() if test.kind == RANK)
RL_TASKS = {name: TESTED[name] for name, test in BENCH_TASKS.items() if test.rl}
# Held-out general text: no task of the data stage.
GENERAL_TASK = BenchTask(9, GENERAL, GENERAL, "exact_match", ("exact_match", "bits_per_byte"), "", 24)


def made(folder: Path, tasks: Iterable[Task]) -> list[Task]:
    """Those of ``tasks`` whose records are in ``folder``."""
    return [task for task in tasks if (folder / task.file).is_file()]


def explained(folder: Path) -> list[Path]:
    """The records in ``folder`` of the tasks whose answers are prose: what distillation keeps a student from losing."""
    prose = [task for task in TASKS.values() if task.test and task.test.kind in (UNDERSTAND, REASON)]
    return [folder / task.file for task in made(folder, prose)]
