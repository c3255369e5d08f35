"""The task table: its order, and that every stage finds its part in it."""

from __future__ import annotations

from data.onerec_data.builders import BUILDERS
from onerec.tasks import BENCH_TASKS, RANK_TASKS, RL_TASKS, TASKS, explained


def test_the_report_shows_the_eight_tasks_of_the_benchmark_in_its_order():
    ranked = ("video", "ad", "product", "label_cond", "interactive")
    assert tuple(BENCH_TASKS) == (*ranked, "label_pred", "item_understand", "rec_reason")
    assert ranked == RANK_TASKS == tuple(RL_TASKS)
    places = [test.place for test in BENCH_TASKS.values()]
    assert len(set(places)) == len(places)


def test_every_row_has_a_builder_and_every_builder_a_row():
    assert BUILDERS.keys() == TASKS.keys()


def test_no_two_tasks_share_the_source_of_their_records():
    assert len({task.source for task in TASKS.values()}) == len(TASKS)


def test_the_tasks_in_words_are_those_whose_records_are_there(tmp_path):
    assert explained(tmp_path) == []
    for name in ("sft_rec_reason", "sft_item_understand", "sft_video_rec", "pretrain_item_understand"):
        (tmp_path / TASKS[name].file).touch()
    assert explained(tmp_path) == [tmp_path / "sft_item_understand.parquet", tmp_path / "sft_rec_reason.parquet"]
